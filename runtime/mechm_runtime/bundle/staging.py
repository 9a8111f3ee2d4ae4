"""Checking the target of a command before anything is written, and explaining errors of writing.

The new folder is made beside its target, which is kept until the new one is moved there (`system.atomic_write`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mechm_runtime.bundle.manifest import foreign_files, read_manifest
from mechm_runtime.errors import BundleError
from mechm_runtime.system.atomic_write import staged_folder


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
def explain_write_errors(out: Path, subject: str = "the bundle", hint: str = "give another --out") -> Iterator[None]:
    """Turn the system's errors (a full disk, a missing permission) into an error that names the file or folder.

    subject: what was to be written, as the message begins.
    Raises: BundleError.
    """
    try:
        yield
    except OSError as error:
        raise BundleError(f"{subject} cannot be written to {out}: {error.strerror or error}", hint=hint) from error


@contextlib.contextmanager
def staging_folder(out: Path) -> Iterator[Path]:
    """Make an empty folder beside the target, which is deleted afterwards unless it was moved; parents are made too.

    Raises: BundleError: the system refuses to write there, now or inside the context.
    """
    with explain_write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with staged_folder(out) as staging:
            yield staging
