"""Locate a bundle: a folder, an installed package, or the default."""

from __future__ import annotations

import os
import shlex
from importlib.util import find_spec
from pathlib import Path

from mechm_runtime.bundle.installed import SCHEME, installed_bundle, only_installed_bundle
from mechm_runtime.system.cache_dir import cache_dir

EXPORT_PACKAGES = ("torch", "transformers", "onnxscript")
"""Packages of the extra `export` whose absence tells a light installation."""


def default_bundle_path() -> Path:
    """The bundle that is used where none is named.

    `MECHM_BUNDLE` where it is set, else the one in the user's cache folder, where `mechm bundle fetch small` and `make
    demo` put it, else the only one that is installed as a package.
    Raises: BundleError: the package that `MECHM_BUNDLE` names is not installed, or several are and none is named.
    """
    if named := os.environ.get("MECHM_BUNDLE"):
        return locate_bundle(named)
    built = cache_dir() / "bundles" / "small"
    return built if built.exists() else only_installed_bundle() or built


def locate_bundle(name: str) -> Path:
    """The folder that a path or `package:NAME` names. Raises: BundleError: that package is not installed."""
    return installed_bundle(name.removeprefix(SCHEME)) if name.startswith(SCHEME) else Path(name)


def is_folder(path: Path) -> bool:
    """Whether a path is a folder that can be read."""
    try:
        return path.is_dir()
    except OSError:  # a name that is too long, a folder that may not be entered
        return False


def missing_hint(asked_for: Path | str | None) -> str:
    """The hint of the error where no bundle lies at a path."""
    if asked_for is not None:
        return "give the folder of a bundle; mechm bundle fetch SOURCE --out DIR gets one"
    if os.environ.get("MECHM_BUNDLE"):
        return "that is what MECHM_BUNDLE names: correct or unset it"
    return commands_for(default_bundle_path())


def commands_for(folder: Path) -> str:
    """The commands that put a bundle into a folder and work in this installation."""
    is_default = folder.absolute() == (cache_dir() / "bundles" / "small").absolute()
    fetch = "mechm bundle fetch small" + ("" if is_default else f" --out {shlex.quote(str(folder))}")
    if any(find_spec(package) is None for package in EXPORT_PACKAGES):
        return fetch
    return f"{fetch}; or from its weights: mechm export bundle --preset small --out {shlex.quote(str(folder))}"
