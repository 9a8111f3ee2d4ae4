"""The input embeddings of a served Llama, read from its weights without loading them.

Prompts with soft tokens are sent as embeddings, those of their words included. The rows come from the memory-mapped
safetensors file in the bundle, so that only those of the prompt's tokens are read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mechm_runtime.errors import BundleError
from mechm_runtime.llm.vllm.tensors import DTYPES, Matrix, cast
from mechm_runtime.system.arrays import Array, Float32Array, Int64Array

EMBEDDINGS = "model.embed_tokens.weight"
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
MAX_HEADER_BYTES = 64 << 20


class EmbeddingTable:
    """Embeddings (V, D) of a Llama in the Hugging Face layout, in the dtype of its file.

    folder: holds `model.safetensors`, or several files and their index.
    """

    def __init__(self, folder: Path) -> None:
        """Open the table.

        Raises: BundleError: the folder holds no readable embeddings.
        """
        try:
            file = folder / _file_of(folder, EMBEDDINGS)
            self._rows, self.dtype = _mapped(file, EMBEDDINGS)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{folder.name} has no {EMBEDDINGS} that can be read: {error}") from error

    @property
    def hidden_size(self) -> int:
        """Width D of an embedding."""
        return int(self._rows.shape[1])

    def embed(
        self,
        ids: Int64Array,
        soft_at: Int64Array,
        soft_tokens: Float32Array,
    ) -> Matrix:
        """Embeddings (T, D) of a sequence.

        ids: int64 (T,). soft_at: int64 (S,), positions of the soft tokens. soft_tokens: float32 (S, D).
        Raises: ValueError: a soft token has another width or is not finite, or an id is not in the vocabulary.
        """
        if soft_tokens.shape != (len(soft_at), self.hidden_size):
            raise ValueError(f"soft tokens {soft_tokens.shape} for a Llama of width {self.hidden_size}")
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(self._rows):
            raise ValueError(f"a token is not among the {len(self._rows)} of the vocabulary")
        rows = np.array(self._rows[ids])
        rows[soft_at] = cast(soft_tokens, self.dtype)
        return Matrix(rows, self.dtype)


def _file_of(folder: Path, name: str) -> str:
    """Name of the file in a folder that holds a tensor."""
    if not (folder / INDEX).is_file():
        return WEIGHTS
    listed: Mapping[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    file = str(listed[name])
    if Path(file).name != file:
        raise ValueError(f"{INDEX} names a file outside its folder")
    return file


def _mapped(file: Path, name: str) -> tuple[Array, str]:
    """A matrix of a safetensors file, memory-mapped, and its dtype by the safetensors name."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        n_header = int.from_bytes(opened.read(8), "little")
        if not 0 < n_header <= min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(f"{file.name} is no safetensors file")
        entry = json.loads(opened.read(n_header))[name]
    dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in DTYPES:
        raise ValueError(f"embeddings in {dtype}")
    n_bytes = math.prod(shape) * DTYPES[dtype].itemsize
    if len(shape) != 2 or min(shape) < 1 or end - start != n_bytes or not 0 <= start <= end <= size - 8 - n_header:
        raise ValueError(f"{file.name} is damaged")
    rows = np.memmap(file, DTYPES[dtype], "r", offset=8 + n_header + start, shape=tuple(shape))
    return rows, dtype
