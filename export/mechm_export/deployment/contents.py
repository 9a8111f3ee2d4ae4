"""Reading a bundle's files for a copy or a package: once, and checked against the manifest while they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from mechm_runtime.bundle.manifest import MANIFEST, SIGNATURE, Bundle
from mechm_runtime.bundle.open import inside
from mechm_runtime.bundle.signature import manifest_bytes, read_signature
from mechm_runtime.errors import BundleError
from mechm_runtime.system.progress import Progress

CHUNK_BYTES = 1 << 20


class Contents:
    """The files of an opened bundle, always in the same order, the manifest first.

    doing: description of the work, for `on_progress`. on_progress: called as bytes are read.
    """

    def __init__(self, bundle: Bundle, doing: str, on_progress: Progress | None = None) -> None:
        """Raises: BundleError: the signature's file is not a signature, or the manifest changed."""
        self.bundle = bundle
        self._in_memory = {MANIFEST: manifest_bytes(bundle)}
        if (signature := read_signature(bundle)) is not None:
            self._in_memory[SIGNATURE] = signature
        self._doing = doing
        self._on_progress = on_progress
        self._done = 0
        self._total = sum(self.size_bytes(name) for name in self.names)

    @property
    def names(self) -> list[str]:
        """Names of all files: the manifest, its signature if there is one, and the listed files."""
        return [*self._in_memory, *sorted(self.bundle.manifest["files"])]

    def size_bytes(self, name: str) -> int:
        """A file's size in bytes."""
        if name in self._in_memory:
            return len(self._in_memory[name])
        return int(self.bundle.manifest["files"][name]["size_bytes"])

    def sha256(self, name: str) -> str:
        """A file's sha256, hexadecimal."""
        if name in self._in_memory:
            return hashlib.sha256(self._in_memory[name]).hexdigest()
        return str(self.bundle.manifest["files"][name]["sha256"])

    def chunks(self, name: str) -> Iterator[bytes]:
        """A file's content in chunks.

        Raises: BundleError: at the end, if the file was not the one that the manifest lists.
        """
        for chunk in self._chunks(name):
            self._done += len(chunk)
            if self._on_progress is not None:
                self._on_progress(self._doing, self._done, self._total)
            yield chunk

    def copy(self, name: str, target: Path) -> None:
        """Copy a file; missing folders of the target are made.

        Raises: BundleError: it changed since the bundle was opened.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            file.writelines(self.chunks(name))

    def _chunks(self, name: str) -> Iterator[bytes]:
        if name in self._in_memory:
            yield self._in_memory[name]
            return
        digest = hashlib.sha256()
        with inside(self.bundle.folder, name).open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                yield chunk
        if digest.hexdigest() != self.sha256(name):
            raise BundleError(f"{name} changed while it was read", hint=f"mechm bundle verify {self.bundle.folder}")
