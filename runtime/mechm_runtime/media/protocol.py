"""Messages between the reader and the decoding process: a length, a JSON header, then raw arrays.

    uint32 big endian   length of the header
    header              JSON object; `arrays` lists {"dtype", "shape"} of what follows
    arrays              raw little-endian values in C order, in the order of the list

Nothing is unpickled, and the receiver checks sizes before it allocates memory: the length of a header, the dtype and
the shape of an array. This module needs the standard library only, since both sides import it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any

MAX_REQUEST_BYTES = 4 << 20
"""A request lists up to 20,000 spans of about 40 characters; it comes from the reader, which is trusted."""

MAX_REPLY_BYTES = 64 << 10
"""A reply's header names shapes and reasons; it comes from a process that decodes hostile data."""

ITEM_BYTES = {"float32": 4, "uint8": 1}
"""Bytes per value of each dtype that is sent."""

Raw = bytes | memoryview
"""Bytes to send; a memoryview is not copied first."""

_LENGTH = struct.Struct(">I")


class ProtocolError(Exception):
    """The other side sent something that is not a message, or stopped in the middle of one."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Dtype and shape of an array whose values follow the header."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of the raw values."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def write_message(
    stream: BufferedIOBase, header: dict[str, Any], arrays: Sequence[tuple[ArraySpec, Sequence[Raw]]] = ()
) -> None:
    """Write one message and flush.

    arrays: sent after the header, each as one piece or more, which together have the length that the spec states.
    Raises: OSError: the other side is gone. ProtocolError: the pieces of an array have another length.
    """
    listed = [{"dtype": spec.dtype, "shape": list(spec.shape)} for spec, _ in arrays]
    encoded = json.dumps({**header, "arrays": listed}).encode("ascii")
    stream.write(_LENGTH.pack(len(encoded)))
    stream.write(encoded)
    for spec, pieces in arrays:
        n_bytes = sum(len(piece) for piece in pieces)
        if n_bytes != spec.n_bytes:
            raise ProtocolError(f"{n_bytes} bytes for an array of {spec.n_bytes}")
        for piece in pieces:
            stream.write(piece)
    stream.flush()


def read_header(stream: BufferedIOBase, *, max_bytes: int) -> dict[str, Any] | None:
    """Read one header; None where the stream ended cleanly before it.

    Raises: ProtocolError: too long, not JSON, not an object, or cut off.
    """
    prefix = stream.read(_LENGTH.size)
    if not prefix:
        return None
    if len(prefix) < _LENGTH.size:
        raise ProtocolError("the stream ended inside a message")
    (length,) = _LENGTH.unpack(prefix)
    if length > max_bytes:
        raise ProtocolError(f"a header of {length} bytes, where {max_bytes} are allowed")
    encoded = stream.read(length)
    if len(encoded) < length:
        raise ProtocolError("the stream ended inside a message")
    try:
        header = json.loads(encoded)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a header that is not JSON") from error
    if not isinstance(header, dict):
        raise ProtocolError("a header that is not a JSON object")
    return header


def array_spec(listed: object, *, dtype: str, max_shape: tuple[int, ...]) -> ArraySpec:
    """Check one entry of a header's `arrays` against what the receiver accepts.

    max_shape: the largest length of each axis; the array must have as many axes, none of them empty.
    Raises: ProtocolError: another dtype, another number of axes, an axis out of range.
    """
    if not isinstance(listed, dict) or listed.get("dtype") != dtype:
        raise ProtocolError(f"an array that is not {dtype}")
    shape = listed.get("shape")
    if not isinstance(shape, list) or len(shape) != len(max_shape):
        raise ProtocolError(f"an array that does not have {len(max_shape)} axes")
    for length, most in zip(shape, max_shape, strict=True):
        # isinstance counts bool as an int, and JSON's true would pass as 1.
        if not isinstance(length, int) or isinstance(length, bool) or not 1 <= length <= most:
            raise ProtocolError(f"an array axis of {length!r}, where 1 to {most} are allowed")
    return ArraySpec(dtype, tuple(shape))


def read_exactly(stream: BufferedIOBase, into: memoryview) -> None:
    """Fill `into` from the stream.

    Raises: ProtocolError: the stream ended first.
    """
    filled = 0
    while filled < len(into):
        chunk = stream.readinto(into[filled:])
        if not chunk:
            raise ProtocolError("the stream ended inside an array")
        filled += chunk
