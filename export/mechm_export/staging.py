"""Write folders whole or not at all: made beside their place, and renamed when they are complete.

What lies there already is judged before (`check_target`, `check_new`) and kept until the new folder is in place.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mechm_runtime.bundle.manifest import foreign_files, read_manifest
from mechm_runtime.errors import BundleError


def check_target(out: Path) -> None:
    """Refuse a target that would destroy something else: an old bundle goes as a whole, and nothing else with it.

    Raises: BundleError: it exists and is neither an empty folder nor a bundle, or holds more than a bundle's files.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise BundleError(f"{out} is not a folder", hint="give another --out")
    if not out.is_dir() or not any(out.iterdir()):
        return
    try:
        foreign = foreign_files(out, read_manifest(out))
    except (BundleError, KeyError, TypeError) as error:
        raise BundleError(f"{out} is a folder with other things in it", hint="give a new or empty --out") from error
    if foreign:
        raise BundleError(f"{out} holds more than its bundle: {foreign[0]}", hint="move that away, or give a new --out")


def check_new(out: Path) -> None:
    """Raises: BundleError: something is there already that is not an empty folder."""
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise BundleError(f"{out} exists", hint="remove it, or give another --out")


@contextlib.contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder beside the target that is gone afterwards, whatever happens."""
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent, ignore_cleanup_errors=True) as folder:
        staging = Path(folder) / out.name
        staging.mkdir()
        yield staging


def put_in_place(staging: Path, out: Path) -> None:
    """Put the new bundle in the old one's place; the old one goes only once the new one is there."""
    old = staging.parent / "replaced"
    if out.exists():
        out.rename(old)
    try:
        staging.rename(out)
    except BaseException:
        if old.exists():
            old.rename(out)
        raise


@contextlib.contextmanager
def written(out: Path) -> Iterator[None]:
    """Say of the system's refusals (a full disk, a folder of somebody else) what they prevented.

    Raises: BundleError.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise BundleError(f"the bundle cannot be written to {out}: {reason}", hint="give another --out") from error
