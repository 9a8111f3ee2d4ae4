"""Write files and folders whole or not at all: made beside their place, renamed when they are complete.

Whoever reads sees the old content or the new one, never a part, and the old one survives a full disk or an interrupt.
The temporary name cannot be guessed and belongs to this call, so that processes that write the same file at once do not
write into each other's.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_atomically(path: Path, content: str | bytes, *, mode: int | None = None) -> None:
    """Write a file of bytes, or of text in UTF-8, whole or not at all.

    mode: as for `replaced_file`.
    Raises: OSError: it cannot be written; what was there before is still there.
    """
    with replaced_file(path, mode=mode) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replaced_file(path: Path, *, mode: int | None = None, is_synced: bool = False) -> Iterator[Path]:
    """A file to write into, which takes the place of `path` when the block succeeds and is deleted when it does not.

    A link at `path` is replaced, not followed.
    mode: permission bits of the new file; None keeps those of the file that is replaced, or the umask's for a new one.
    is_synced: write the content to the disk before the rename, so that a power cut cannot leave the name without it.
    Raises: OSError: it cannot be written; what was there before is still there.
    """
    beside = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
    # O_EXCL: nobody's file or link is written into.
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            kept = _mode(path, os.fstat(file.fileno())) if mode is None else mode
        yield beside
        # Some libraries write a file of their own under the name they are given, safetensors for one.
        beside.chmod(kept)
        if is_synced:
            with beside.open("rb+") as file:
                os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


def _mode(path: Path, new: os.stat_result) -> int:
    """Permission bits of the file that is replaced, those of the new one where there is none."""
    with suppress(OSError):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode):
            return stat.S_IMODE(found.st_mode)
    return stat.S_IMODE(new.st_mode)


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """An empty folder beside `out` to write into; it is gone afterwards unless it was moved (`put_in_place`).

    Raises: OSError: it cannot be made.
    """
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent, ignore_cleanup_errors=True) as beside:
        folder = Path(beside) / out.name  # made with the umask's mode, which a temporary folder has not
        folder.mkdir()
        yield folder


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` when the block succeeds and is deleted when it does not.

    Raises: OSError: it cannot be made, or `out` is there and not empty.
    """
    with staged_folder(out) as folder:
        yield folder
        folder.rename(out)


@contextmanager
def in_place(new: Path, out: Path) -> Iterator[None]:
    """Move a folder to `out` for a block; where the block fails, what was there before is put back.

    new: a folder (or file) on the same file system. What it replaces lies afterwards beside where `new` was, as
        `replaced`.
    Raises: OSError: it cannot be moved.
    """
    old = new.with_name("replaced")
    if out.exists():
        out.rename(old)
    try:
        new.rename(out)
        try:
            yield
        except BaseException:
            out.rename(new)
            raise
    except BaseException:
        if old.exists():
            old.rename(out)
        raise


def put_in_place(new: Path, out: Path) -> None:
    """Move a folder (or file) to `out`; what is there goes only once the new one is in place, see `in_place`.

    Raises: OSError: it cannot be moved; what was there before is still there.
    """
    with in_place(new, out):
        pass
