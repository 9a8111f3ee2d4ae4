"""Writes matrices in the format of vLLM's requests: a torch file in base64. Files are never read here.

A torch file is a zip of raw bytes and of a pickle that describes their layout. The pickle is written operation by
operation, so that the light runtime needs no torch; torch's `weights_only` loader accepts it like a file of
`torch.save`.
"""

from __future__ import annotations

import base64
import io
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mechm_runtime.system.arrays import Array, Float32Array, Int64Array

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BF16": np.dtype("<u2"),  # numpy has no bfloat16: its bits
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}
"""Dtype by the name of safetensors -> numpy dtype that holds its values here."""

BF16_INFINITY = 0x7F80
"""Bits of infinity in bfloat16: all bits of the exponent."""

STORAGES: Mapping[str, str] = {"BF16": "BFloat16Storage", "F16": "HalfStorage", "F32": "FloatStorage"}
"""Dtype by the name of safetensors -> torch's class of its storage."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix (T, D) and its dtype, a key of `DTYPES`."""

    values: Array
    dtype: str

    def rows(self, positions: Int64Array) -> Matrix:
        """The rows at some positions, in their order."""
        return Matrix(self.values[positions], self.dtype)


def cast(values: Float32Array, dtype: str) -> Array:
    """Convert values to a dtype of `DTYPES`, rounded to the nearest; bfloat16 as its bits.

    Raises: ValueError: a value is not finite, or too large for the dtype.
    """
    if not np.isfinite(values).all():
        raise ValueError("a soft token is not finite")
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
        # Adds half of the cut-off range, and in a tie the last bit that stays: round to nearest, ties to even.
        narrow = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(DTYPES[dtype])
        overflows = (narrow & BF16_INFINITY) == BF16_INFINITY
    else:
        with np.errstate(over="ignore"):
            narrow = values.astype(DTYPES[dtype])
        overflows = np.isinf(narrow)
    if overflows.any():
        raise ValueError(f"a soft token is too large for {dtype}")
    return narrow


def to_torch_file(tensor: Matrix) -> str:
    """A matrix as a torch file in base64, as `torch.save` writes it."""
    rows, columns = tensor.values.shape
    contents = io.BytesIO()
    with zipfile.ZipFile(contents, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", _layout(rows, columns, STORAGES[tensor.dtype]))
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/data/0", np.ascontiguousarray(tensor.values).tobytes())
        archive.writestr("archive/version", b"3\n")
    return base64.b64encode(contents.getvalue()).decode("ascii")


def _layout(rows: int, columns: int, storage: str) -> bytes:
    """The pickle: `_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)`."""

    def number(value: int) -> bytes:
        return pickle.BININT + value.to_bytes(4, "little", signed=True)

    def text(value: str) -> bytes:
        return pickle.BINUNICODE + len(value).to_bytes(4, "little") + value.encode()

    def name(module: str, attribute: str) -> bytes:
        return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()

    stored = [
        *(pickle.MARK, text("storage"), name("torch", storage), text("0"), text("cpu")),
        *(number(rows * columns), pickle.TUPLE, pickle.BINPERSID),
    ]
    hooks = [name("collections", "OrderedDict"), pickle.EMPTY_TUPLE, pickle.REDUCE]
    operations = [
        *(pickle.PROTO, b"\x02", name("torch._utils", "_rebuild_tensor_v2"), pickle.MARK, *stored, number(0)),
        *(number(rows), number(columns), pickle.TUPLE2, number(columns), number(1), pickle.TUPLE2),
        *(pickle.NEWFALSE, *hooks, pickle.TUPLE, pickle.REDUCE, pickle.STOP),
    ]
    return b"".join(operations)
