"""Outputs of encoders in a folder, for those who configure one: raw arrays, bounded, never trusted.

A file is

    magic           8 bytes
    uint32 big endian   length of the header
    header          JSON object: `key`, `sha256` of what follows, `arrays` as {"name", "dtype", "shape"}
    arrays          raw little-endian values in C order, in the order of the list

It is there whole or not at all. One that was cut off, changed or is something else counts as absent: sizes are held
against the file's own before memory is taken, and nothing is unpickled. What is kept tells of people: it is readable by
its owner alone, and nothing is written unless a folder was named.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import threading
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mechm_runtime.system.arrays import Array, Arrays
from mechm_runtime.system.atomic_write import write_atomically

Outputs = Arrays
"""Arrays by output name."""

MAGIC = b"MECHMOU1"
SUFFIX = ".outputs"
DTYPES = {name: np.dtype(name).newbyteorder("<") for name in ("float16", "float32", "int64", "int32", "uint8", "bool")}
MAX_HEADER_BYTES = 16 << 10
MAX_AXES = 8
SLACK = 0.9
"""The part of a full store that remains when its oldest files are deleted: they are listed once for many writes."""
RECOUNTED = 0.05
"""The part of a store that one process fills before it counts again what all processes have written."""

_LENGTH = struct.Struct(">I")


class OutputStore:
    """Outputs by key, in files of one folder. Safe between threads, and between processes that share the folder.

    folder: made when the first outputs are kept. max_bytes: of all files together; the least recently used go first.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._n_bytes: int | None = None  # of all files when they were last counted
        self._n_new = 0  # of those written since

    def find(self, key: str) -> Outputs | None:
        """The outputs kept under a key; None where there are none, or not as they were written.

        key: hexadecimal digits.
        """
        path = self._path(key)
        try:
            with path.open("rb") as file:
                outputs = _read(file, key)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)  # lately used, to whoever deletes
        return outputs

    def keep(self, key: str, outputs: Outputs) -> None:
        """Keep outputs; those that do not fit, or that no file can hold, are passed over, and so is a full disk."""
        if any(array.dtype.name not in DTYPES for array in outputs.values()):
            return
        content = _written(key, outputs)
        if len(content) > self.max_bytes:
            return
        with self._lock, suppress(OSError):
            self.folder.mkdir(parents=True, mode=0o700, exist_ok=True)
            write_atomically(self._path(key), content, mode=0o600)
            self._n_new += len(content)
            if self._n_bytes is None or self._n_new > RECOUNTED * self.max_bytes:
                self._n_bytes, self._n_new = sum(size for _, size, _ in self._listed()), 0
            if self._n_bytes + self._n_new > self.max_bytes:
                self._n_bytes, self._n_new = self._make_room(), 0

    def after_fork(self) -> None:
        """Make a forked process's copy usable: another thread may have held its lock."""
        self._lock = threading.Lock()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _listed(self) -> list[tuple[int, int, Path]]:
        """When each file was last used (ns), its bytes, and its path."""
        found = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            with suppress(OSError):  # another process may be deleting, too
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        return found

    def _make_room(self) -> int:
        """Delete the least recently used files; returns the bytes of those that stay."""
        listed = sorted(self._listed())
        left = sum(size for _, size, _ in listed)
        for _, size, path in listed:
            if left <= SLACK * self.max_bytes:
                break
            path.unlink(missing_ok=True)
            left -= size
        return left


def _written(key: str, outputs: Outputs) -> bytes:
    listed = [{"name": name, "dtype": a.dtype.name, "shape": list(a.shape)} for name, a in outputs.items()]
    arrays = b"".join(np.ascontiguousarray(a, DTYPES[a.dtype.name]).tobytes() for a in outputs.values())
    header = json.dumps({"key": key, "sha256": hashlib.sha256(arrays).hexdigest(), "arrays": listed}).encode()
    return b"".join((MAGIC, _LENGTH.pack(len(header)), header, arrays))


def _read(file: BinaryIO, key: str) -> Outputs:
    """The arrays of an open file.

    Raises: ValueError, LookupError, TypeError, AttributeError: it is not what was written under this key.
    """
    size = os.fstat(file.fileno()).st_size
    head = file.read(len(MAGIC) + _LENGTH.size)
    if len(head) < len(MAGIC) + _LENGTH.size or not head.startswith(MAGIC):
        raise ValueError("not a file of outputs")
    (n_header,) = _LENGTH.unpack(head[len(MAGIC) :])
    if n_header > MAX_HEADER_BYTES:
        raise ValueError("a header too long")
    header = json.loads(file.read(n_header))
    if header["key"] != key:
        raise ValueError("another key's outputs")
    expected = [(str(a["name"]), DTYPES[a["dtype"]], _checked_shape(a["shape"])) for a in header["arrays"]]
    n_bytes = [dtype.itemsize * math.prod(shape) for _, dtype, shape in expected]
    if sum(n_bytes) != size - len(head) - n_header:
        raise ValueError("another number of bytes than its arrays take")
    content = file.read(sum(n_bytes))
    if hashlib.sha256(content).hexdigest() != header["sha256"]:
        raise ValueError("changed since")
    outputs: dict[str, Array] = {}
    start = 0
    for (name, dtype, shape), n in zip(expected, n_bytes, strict=True):
        values = np.frombuffer(content, dtype, math.prod(shape), start).reshape(shape)
        outputs[name] = values.astype(dtype.newbyteorder("="), copy=False)
        start += n
    return outputs


def _checked_shape(shape: list[int]) -> tuple[int, ...]:
    """A shape as JSON has it.

    Raises: ValueError: not one.
    """
    if len(shape) > MAX_AXES or not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError("not a shape")
    return tuple(shape)
