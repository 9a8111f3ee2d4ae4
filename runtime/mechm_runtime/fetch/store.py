"""Places that hold the files of a bundle: the interface, and a folder of this machine.

Stores copy bytes; whoever asked compares the finished bundle with its manifest (`fetch_bundle`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from mechm_runtime.bundle.open import inside
from mechm_runtime.errors import BundleError

CHUNK_BYTES = 1 << 20
GET_AGAIN = "get it again from where it came from"

OnBytes = Callable[[int], None]
"""Called with the number of bytes that have just arrived; negative where some of them are given up."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to copy out of a store.

    name: in the store. target: a path that does not exist yet. size_bytes, sha256: as the bundle's manifest lists them.
    """

    name: str
    target: Path
    size_bytes: int
    sha256: str


class Store(Protocol):
    """A place with named files."""

    @property
    def place(self) -> str:
        """The place as messages name it, without credentials."""

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """A small file; None where there is no such file. Raises: BundleError: it is larger, or cannot be read."""

    def copy(self, files: Sequence[Wanted], on_bytes: OnBytes) -> None:
        """Write the files to their targets. Raises: BundleError: one is missing, or has another size or content."""


class FolderStore:
    """A folder of this machine; links in it are refused."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.place = str(folder)

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """See `Store`."""
        path = inside(self._folder, name)
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return read_limited(file, max_bytes, f"{name} in {self.place}")

    def copy(self, files: Sequence[Wanted], on_bytes: OnBytes) -> None:
        """See `Store`."""
        for one in files:
            path = inside(self._folder, one.name)
            if not path.is_file():
                raise BundleError(f"{self.place} lacks {one.name}", hint=GET_AGAIN)
            with path.open("rb") as file:
                copy_exactly(file, one, self.place, on_bytes)


def read_limited(file: BinaryIO, max_bytes: int, name: str) -> bytes:
    """All of a small file. Raises: BundleError: it is larger."""
    content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise BundleError(f"{name} is larger than {max_bytes:,} bytes", hint="is it a bundle?")
    return content


def copy_exactly(source: BinaryIO, wanted: Wanted, place: str, on_bytes: OnBytes) -> None:
    """Write a file of the wanted size.

    Raises: BundleError: the source holds more or less. OSError: the target cannot be written.
    """
    wanted.target.parent.mkdir(parents=True, exist_ok=True)
    left = wanted.size_bytes
    with wanted.target.open("xb") as file:
        while left >= 0 and (chunk := source.read(CHUNK_BYTES)):
            left -= file.write(chunk)
            on_bytes(len(chunk))
    if left:
        raise BundleError(
            f"{wanted.name} in {place} has {'more' if left < 0 else 'less'} than its {wanted.size_bytes:,} bytes",
            hint=GET_AGAIN,
        )
