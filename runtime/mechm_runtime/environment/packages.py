"""Installed packages: those of each extra, and the distributions that bring onnxruntime.

It reads the packages' own metadata; none of them is imported or installed.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from packaging.requirements import Requirement

ONNXRUNTIME_GPU = "onnxruntime-gpu"
"""The distribution of onnxruntime with CUDA; the engine that needs it has its name."""

ONNXRUNTIME_EXTRAS: tuple[str, ...] = ("cpu", "gpu")
"""Extras that bring onnxruntime; both own the same files, so an environment takes exactly one."""


@dataclass(frozen=True, slots=True)
class Extra:
    """One extra of the distribution.

    installed: package -> version, of the packages that fit.
    missing: requirements that are not met, with the installed version where that is the reason.
    command: installs it; empty where nothing is missing or another extra takes its place.
    note: why there is no command although something is missing.
    """

    name: str
    installed: Mapping[str, str]
    missing: tuple[str, ...]
    command: str = ""
    note: str = ""


def installed_version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def engine_distributions() -> tuple[str, ...]:
    """The installed distributions that own the import name `onnxruntime`, sorted."""
    names = set()
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"] or ""  # a broken installation has none
        # Asking every distribution for its files would read hundreds of lists; all of these carry the prefix.
        if name.lower().startswith("onnxruntime") and any(
            file.parts[0] == "onnxruntime" for file in distribution.files or ()
        ):
            names.add(name.lower().replace("_", "-"))
    return tuple(sorted(names))


def install_target(extra: str) -> str:
    """The argument of `pip install` that brings an extra: the source folder it was installed from, else its name."""
    try:
        origin = importlib.metadata.distribution("mechm").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        origin = None
    if origin:
        described: dict[str, Any] = json.loads(origin)
        url = urlparse(described["url"])
        if url.scheme == "file" and "dir_info" in described:
            editable = "-e " if described["dir_info"].get("editable") else ""
            return f"{editable}'{url2pathname(url.path)}[{extra}]'"
    return f"'mechm[{extra}]'"


def requirements() -> Mapping[str, tuple[Requirement, ...]]:
    """The requirements of each extra on this system, "" being the base install; empty where mechm is not installed.

    An extra that names another (`mechm[train]`) has that one's requirements, too.
    """
    try:
        metadata = importlib.metadata.metadata("mechm")
        lines = importlib.metadata.requires("mechm") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    extras = metadata.get_all("Provides-Extra") or []
    parsed = [Requirement(line) for line in lines]

    def collect(extra: str, seen: frozenset[str]) -> dict[str, Requirement]:
        asked: dict[str, Requirement] = {}
        for requirement in parsed:
            if requirement.marker is None:
                applies = extra == ""
            else:
                applies = requirement.marker.evaluate({"extra": extra}) and (
                    extra == "" or not requirement.marker.evaluate({"extra": ""})
                )
            if not applies:
                continue
            if requirement.name == "mechm":
                for other in requirement.extras - seen:
                    asked |= collect(other, seen | {other})
            else:
                asked[requirement.name] = requirement
        return asked

    return {extra: tuple(collect(extra, frozenset({extra})).values()) for extra in ("", *extras)}


def examine_extras() -> tuple[Extra, ...]:
    """State of every extra: installed and missing packages, and the install command; the base install is ""."""
    asked = requirements()
    found = {name: _examine_extra(name, wanted) for name, wanted in asked.items()}
    for name, other in zip(ONNXRUNTIME_EXTRAS, reversed(ONNXRUNTIME_EXTRAS), strict=True):
        if name in found and found[name].missing and other in found and not found[other].missing:
            extra = found[name]
            note = f"`{other}` is installed in its place"
            if name == "gpu":
                note += f"; for --engine {ONNXRUNTIME_GPU}: {gpu_install_command(engine_distributions())}"
            found[name] = Extra(name, extra.installed, extra.missing, note=note)
    return tuple(found.values())


def _examine_extra(name: str, wanted: Sequence[Requirement]) -> Extra:
    installed: dict[str, str] = {}
    missing: list[str] = []
    for requirement in wanted:
        version = installed_version(requirement.name)
        bare = f"{requirement.name}{requirement.specifier}"
        if version is None:
            missing.append(bare)
        elif not requirement.specifier.contains(version, prereleases=True):
            missing.append(f"{bare} ({version} is installed)")
        else:
            installed[requirement.name] = version
    if not missing:
        return Extra(name, installed, ())
    target = install_target(name) if name else "--upgrade mechm"
    return Extra(name, installed, tuple(missing), command=f"pip install {target}")


def gpu_install_command(installed: Sequence[str]) -> str:
    """The command that installs onnxruntime with CUDA.

    installed: the distributions that own the import name `onnxruntime` (`engine_distributions`).
    """
    install = f"pip install '{ONNXRUNTIME_GPU}[cuda,cudnn]'"
    # Both distributions own the same files: removing one takes files of the other with it, so both go first.
    return install if set(installed) <= {ONNXRUNTIME_GPU} else f"pip uninstall -y {' '.join(installed)} && {install}"
