"""Archives as stores: tar, tar.gz, zip and wheels, read from a file of this machine.

Only files that somebody asks for by name are written, and only where the caller says: paths in the archive never become
paths on the disk, and links are refused. An archive that unpacks to far more than a bundle does, or holds too many
entries, is refused. Entries may lie in a folder of the archive, as a bundle does in its wheel.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mechm_runtime.bundle.manifest import MANIFEST
from mechm_runtime.errors import BundleError
from mechm_runtime.fetch.store import GET_AGAIN, OnBytes, Wanted, copy_exactly, read_limited

MAX_ENTRIES = 20_000
MAX_RATIO = 100
"""Unpacked bytes per byte of the archive; weights shrink to a half at most."""
FREE_BYTES = 64 << 20
"""Unpacked bytes that any archive may have, whatever its size."""
MAX_READ_BYTES = 4 << 20
"""tarfile reads an entry's extended header whole, whatever length it claims."""
LAYOUT_FILE = "oci-layout"
KINDS = "give a .tar, .tar.gz, .zip or .whl of a bundle, or a .tar of its OCI layout"

Entry = tuple[str, bool, int, Callable[[], BinaryIO]]
"""An entry's path, whether it is a plain file, its size in bytes, and a function that opens it."""

_DAMAGES = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RecursionError,
    RuntimeError,
    ValueError,
    OverflowError,
)


class ArchiveStore:
    """The bundle (or its OCI layout) in an archive.

    Raises: BundleError: it is no archive, is damaged, or holds no bundle or several.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.place = path.name
        self._limit = FREE_BYTES + MAX_RATIO * path.stat().st_size
        names = [name for name, is_file, _, _ in self._entries() if is_file]
        found = sorted({_folder(name) for name in names if _last(name) == MANIFEST}, key=len)
        found = found or sorted({_folder(name) for name in names if _last(name) == LAYOUT_FILE})
        if len(found) != 1:
            raise BundleError(f"{self.place} holds {len(found) or 'no'} bundle{'s' * (len(found) > 1)}", hint=KINDS)
        self._prefix = found[0]

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """See `Store`."""
        for found, is_file, _, open_it in self._entries():
            if found == self._prefix + name:
                self._require_plain(name, is_file)
                with self._explained(), open_it() as file:
                    return read_limited(file, max_bytes, f"{name} in {self.place}")
        return None

    def copy(self, files: Sequence[Wanted], on_bytes: OnBytes) -> None:
        """See `Store`."""
        wanted: dict[str, list[Wanted]] = {}
        for one in files:
            wanted.setdefault(self._prefix + one.name, []).append(one)
        for found, is_file, size_bytes, open_it in self._entries():
            for one in wanted.pop(found, ()):
                self._require_plain(one.name, is_file)
                if size_bytes != one.size_bytes:
                    raise BundleError(
                        f"{one.name} in {self.place} has {size_bytes:,} bytes, not {one.size_bytes:,}", hint=GET_AGAIN
                    )
                with self._explained(), open_it() as file:
                    copy_exactly(file, one, self.place, on_bytes)
            if not wanted:
                return
        raise BundleError(f"{self.place} lacks {min(wanted).removeprefix(self._prefix)}", hint=GET_AGAIN)

    def _require_plain(self, name: str, is_file: bool) -> None:
        if not is_file:
            raise BundleError(f"{name} in {self.place} is a link or a special file, not a plain one", hint=GET_AGAIN)

    def _entries(self) -> Iterator[Entry]:
        """The entries in their order; one must be read before the next is asked for."""
        with self._explained():
            entries = _zip_entries if zipfile.is_zipfile(self._path) else self._tar_entries
            for n_entries, entry in enumerate(entries(self._path)):
                if n_entries >= MAX_ENTRIES:
                    raise BundleError(f"{self.place} has more than {MAX_ENTRIES:,} entries: refused", hint=KINDS)
                yield entry

    def _tar_entries(self, path: Path) -> Iterator[Entry]:
        with path.open("rb") as raw:
            is_packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            plain: BinaryIO = gzip.GzipFile(fileobj=raw) if is_packed else raw  # type: ignore[assignment]
            with tarfile.open(fileobj=_Limited(plain, self._limit, self.place), mode="r:") as archive:
                while (member := archive.next()) is not None:
                    is_file = member.isreg() and not member.issparse()
                    yield _path_of(member.name), is_file, member.size, _opener(archive, member)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except _DAMAGES as error:
            raise BundleError(f"{self.place} is no archive that can be read: {type(error).__name__}", hint=KINDS) from (
                error
            )


def _zip_entries(path: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            kind = info.external_attr >> 28  # the type of a Unix mode; 0 where another system packed it
            is_file = not info.is_dir() and kind in (0, 0o10)
            yield _path_of(info.filename), is_file, info.file_size, _zip_opener(archive, info)


def _zip_opener(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], BinaryIO]:
    return lambda: archive.open(info)  # type: ignore[return-value]


def _opener(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[], BinaryIO]:
    def open_it() -> BinaryIO:
        file = archive.extractfile(member)
        if file is None:
            raise tarfile.ExtractError
        return file  # type: ignore[return-value]

    return open_it


def _path_of(name: str) -> str:
    return name.removeprefix("./").rstrip("/")


def _folder(name: str) -> str:
    return name[: len(name) - len(_last(name))]


def _last(name: str) -> str:
    return name.rpartition("/")[2]


class _Limited(io.RawIOBase):
    """The unpacked bytes of a tar archive, as far as the limit, and never many of them at once."""

    def __init__(self, file: BinaryIO, limit: int, place: str) -> None:
        super().__init__()
        self._file, self._limit, self._place = file, limit, place

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET and position > self._limit:
            self._refuse()
        return self._file.seek(position, whence)

    def read(self, n_bytes: int | None = -1) -> bytes:
        if n_bytes is None or not 0 <= n_bytes <= MAX_READ_BYTES or self._file.tell() + n_bytes > self._limit:
            self._refuse()
        return self._file.read(n_bytes or 0)

    def _refuse(self) -> None:
        raise BundleError(f"{self._place} unpacks to more than a bundle of its size can have: refused", hint=GET_AGAIN)
