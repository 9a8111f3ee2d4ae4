"""Describes a base language model on disk: its tensors, whether an adapter can be merged into them, its fingerprint.

Only `config.json` and the headers of the safetensors files are read, so that a wrong folder is refused before gigabytes
are loaded. Pickled weights are not read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mechm_runtime.errors import WeightsError

FLOATS = frozenset(("F16", "BF16", "F32", "F64"))
"""Names in safetensors of the dtypes that an adapter can be merged into."""

FINGERPRINT_VALUES = 256
"""Leading values of each tensor that the fingerprint covers."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """File, shape and dtype of a stored tensor; dtype as named by safetensors ("BF16")."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class StoredBase:
    """A folder in the Hugging Face layout. tensors: by name, over all shards."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    @property
    def n_parameters(self) -> int:
        """Number of stored weights."""
        return sum(prod(tensor.shape) for tensor in self.tensors.values())

    def __str__(self) -> str:
        sizes = ", ".join(f"{key} {self.config.get(key)}" for key in ("hidden_size", "num_hidden_layers", "vocab_size"))
        return f"{self.folder} ({sizes})"


def read_base(folder: Path) -> StoredBase:
    """Read a base's config and headers.

    Raises: WeightsError: no such folder, no config or tokenizer, weights that are missing, cut short, pickled or
        quantized.
    """
    config = read_json(folder / "config.json")
    if not (folder / "tokenizer.json").is_file():
        raise WeightsError(f"{folder} has no tokenizer.json", hint="give the folder of the whole model with --base")
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise _quantized(f"{folder} is quantized ({str(method or 'quantization_config in its config.json')[:40]})")
    tensors = {name: tensor for file in _weight_files(folder) for name, tensor in read_shapes(file).items()}
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise _quantized(f"{folder} is quantized: {name} is stored as {tensor.dtype}")
    return StoredBase(folder, config, tensors)


def base_fingerprint(base: StoredBase) -> str:
    """Compute a hash that identifies a model, in hex; an adapter's card stores it as `base_fingerprint`.

    It covers every tensor's name, shape and first values, rounded to bf16. The same weights in another dtype or in
    other shards have the same fingerprint; a fine-tuned version has another.
    """
    digest = hashlib.sha256()
    for name, stored in sorted(base.tensors.items()):
        # Some writers store a tied output matrix as well as the embedding, most do not.
        if name == "lm_head.weight" and base.config.get("tie_word_embeddings"):
            continue
        with safe_open(stored.file, framework="pt") as file:
            part = file.get_slice(name)
            values = part[:FINGERPRINT_VALUES] if len(stored.shape) == 1 else part[:1]
        first = values.flatten()[:FINGERPRINT_VALUES].to(torch.bfloat16).contiguous().view(torch.int16)
        digest.update(f"{name} {list(stored.shape)}\n".encode() + first.numpy().astype("<i2").tobytes())
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises: WeightsError: no such file, or no JSON object.
    """
    try:
        values = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not JSON") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path} does not hold a JSON object")
    return values


def read_text(path: Path) -> str:
    """Read a text file.

    Raises: WeightsError: no such file, or no UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise WeightsError(f"{path} is not text") from error


def read_shapes(file: Path) -> dict[str, StoredTensor]:
    """Read the tensors' descriptions from a safetensors file's header.

    Raises: WeightsError: it is truncated or not a safetensors file.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 (no mapping)
            return {
                name: StoredTensor(file, tuple(one.get_shape()), str(one.get_dtype())) for name, one in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} is not a whole safetensors file: {error}") from error


def _weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that the folder's index lists, or its only one."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
        if not names or any(Path(name).name != name for name in names):
            raise WeightsError(f"{index} does not map weights to files beside it")
    else:
        names = ["model.safetensors"]
    absent = [name for name in names if not (folder / name).is_file()]
    if not absent:
        return [folder / name for name in names]
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if pickled:
        raise WeightsError(
            f"{folder} holds pickled weights ({pickled[0]}), which run code when they are read",
            hint="fetch the same model as safetensors",
        )
    raise WeightsError(
        f"{folder} lacks {absent[0]}", hint="fetch the base again, or give the folder of a whole model with --base"
    )


def _quantized(what: str) -> WeightsError:
    return WeightsError(
        f"{what}: an adapter cannot be merged into rounded weights without losing it",
        hint="give the model's fp16 or bf16 weights with --base, and quantize the merged folder afterwards",
    )
