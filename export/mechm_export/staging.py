"""Writing folders whole or not at all: they are made beside their target, and renamed when they are complete.

An existing target is checked before (`check_target`, `check_new`) and kept until the new folder is in place.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mechm_runtime.bundle.manifest import foreign_files, read_manifest
from mechm_runtime.errors import BundleError


def check_target(out: Path) -> None:
    """Refuse a target whose replacement would delete anything but an old bundle.

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
    """Refuse a target that exists, unless it is an empty folder.

    Raises: BundleError.
    """
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise BundleError(f"{out} exists", hint="remove it, or give another --out")


@contextlib.contextmanager
def staging_folder(out: Path) -> Iterator[Path]:
    """Make a folder beside the target, which is deleted afterwards unless it was renamed. Makes missing parents too."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent, ignore_cleanup_errors=True) as folder:
        staging = Path(folder) / out.name
        staging.mkdir()
        yield staging


def put_in_place(staging: Path, out: Path) -> None:
    """Rename the new folder to the target; an old folder there is deleted only once the new one is in place."""
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
def explain_write_errors(out: Path, subject: str = "the bundle", hint: str = "give another --out") -> Iterator[None]:
    """Turn the system's errors (a full disk, a missing permission) into an error that names the file or folder.

    subject: what was to be written, as the message begins.
    Raises: BundleError.
    """
    try:
        yield
    except OSError as error:
        raise BundleError(f"{subject} cannot be written to {out}: {error.strerror or error}", hint=hint) from error
