"""Bundles that are installed as Python packages, as `mechm bundle to-wheel` makes them.

Such a package names itself under the entry point group `mechm.bundles` and holds the bundle in its folder `bundle`.
Packages are looked up, never imported: none of their code runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.machinery import PathFinder
from importlib.metadata import entry_points
from pathlib import Path

from packaging.utils import canonicalize_name

from mechm_runtime.errors import BundleError

ENTRY_POINTS = "mechm.bundles"
"""The entry point group; an entry's value is the package that holds the bundle."""
SCHEME = "package:"
"""Prefix of a package's name where a bundle's folder could be given instead."""
FOLDER = "bundle"
"""The bundle's folder in its package."""
PACKAGE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""A top-level package, which can be found without importing another."""


def installed_bundles() -> Mapping[str, Path]:
    """Distribution name, normalised -> the bundle's folder, for every installed bundle, sorted by name."""
    found: dict[str, Path] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.dist is None or not PACKAGE.fullmatch(entry.value):
            continue
        spec = PathFinder.find_spec(entry.value)
        if spec is not None and spec.origin is not None:
            found.setdefault(canonicalize_name(entry.dist.name), Path(spec.origin).parent / FOLDER)
    return dict(sorted(found.items()))


def installed_bundle(name: str) -> Path:
    """The folder of a bundle that is installed under a distribution name.

    Raises: BundleError: it is not installed.
    """
    bundles = installed_bundles()
    folder = bundles.get(canonicalize_name(name))
    if folder is None:
        hint = f"there is {', '.join(bundles)}" if bundles else "pip install the wheel that mechm bundle to-wheel wrote"
        raise BundleError(f"no package {name} with a bundle is installed", hint=hint)
    return folder


def only_installed_bundle() -> Path | None:
    """The folder of the bundle that is installed, None where none is.

    Raises: BundleError: several are.
    """
    bundles = installed_bundles()
    if len(bundles) > 1:
        raise BundleError(
            f"several bundles are installed: {', '.join(bundles)}",
            hint=f"name one: MECHM_BUNDLE={SCHEME}{next(iter(bundles))}",
        )
    return next(iter(bundles.values()), None)
