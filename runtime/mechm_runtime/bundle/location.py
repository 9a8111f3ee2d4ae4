"""Locate a bundle: a folder, an installed package, or the default."""

from __future__ import annotations

import os
from pathlib import Path

from mechm_runtime.bundle.installed import SCHEME, installed_bundle, only_installed_bundle
from mechm_runtime.system.cache_dir import cache_dir


def default_bundle_path() -> Path:
    """The bundle that is used where none is named.

    `MECHM_BUNDLE` where it is set, else the one that `make demo` builds in the user's cache folder, else the only one
    that is installed as a package.
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
        return "give the folder that `mechm export bundle` wrote"
    return "that is what MECHM_BUNDLE names: correct or unset it" if os.environ.get("MECHM_BUNDLE") else "make demo"
