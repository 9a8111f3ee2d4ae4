"""The input embeddings of a served Llama, read from its weights without loading them.

Prompts that hold soft tokens travel as embeddings, the words' included. The rows are taken from the memory-mapped
safetensors file in the bundle, so that only those of the words that are asked about are read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mechm_runtime.errors import BundleError
from mechm_runtime.llm.vllm.tensors import DTYPES, Matrix, cast

EMBEDDINGS = "model.embed_tokens.weight"
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
MAX_HEADER_BYTES = 64 << 20


class EmbeddingTable:
    """Rows (V, D) of a Llama in the Hugging Face layout, in the dtype of its file.

    folder: with `model.safetensors`, or with several files and their index.
    """

    def __init__(self, folder: Path) -> None:
        """Raises: BundleError: there are no embeddings that can be read."""
        try:
            file = folder / _file_with(folder, EMBEDDINGS)
            self._rows, self.dtype = _mapped(file, EMBEDDINGS)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{folder.name} has no {EMBEDDINGS} that can be read: {error}") from error

    @property
    def hidden_size(self) -> int:
        """D."""
        return int(self._rows.shape[1])

    def embed(
        self,
        ids: npt.NDArray[np.int64],
        soft_at: npt.NDArray[np.int64],
        soft_tokens: npt.NDArray[np.float32],
    ) -> Matrix:
        """Embeddings (T, D) of a sequence.

        ids: int64 (T,). soft_at: int64 (S,), where soft tokens stand. soft_tokens: float32 (S, D).
        Raises: ValueError: a soft token has another width or is not finite, or an id is not in the vocabulary.
        """
        if soft_tokens.shape != (len(soft_at), self.hidden_size):
            raise ValueError(f"soft tokens {soft_tokens.shape} for a Llama of width {self.hidden_size}")
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(self._rows):
            raise ValueError(f"a token is not among the {len(self._rows)} of the vocabulary")
        rows = np.array(self._rows[ids])
        rows[soft_at] = cast(soft_tokens, self.dtype)
        return Matrix(rows, self.dtype)


def _file_with(folder: Path, name: str) -> str:
    """The file of a folder that holds a tensor."""
    if not (folder / INDEX).is_file():
        return WEIGHTS
    listed: Mapping[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    file = str(listed[name])
    if Path(file).name != file:
        raise ValueError(f"{INDEX} names a file outside its folder")
    return file


def _mapped(file: Path, name: str) -> tuple[npt.NDArray[Any], str]:
    """A matrix of a safetensors file, mapped into memory, and its dtype by its safetensors name."""
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
