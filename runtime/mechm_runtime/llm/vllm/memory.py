"""Estimates the memory of a served Llama from its config: weights, and the cache of keys and values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechm_runtime.errors import BundleError

DTYPE_BYTES: Mapping[str, int] = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """Sizes of a Llama, named as in its `config.json`.

    max_position_embeddings: most tokens of a prompt with its answer.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    tie_word_embeddings: bool

    @property
    def n_linear(self) -> int:
        """Number of parameters of the linear layers, without embeddings and output layer."""
        queries = self.hidden_size * self.num_attention_heads * self.head_dim
        keys = self.hidden_size * self.num_key_value_heads * self.head_dim
        return self.num_hidden_layers * (2 * queries + 2 * keys + 3 * self.hidden_size * self.intermediate_size)

    @property
    def n_parameters(self) -> int:
        """Number of parameters of the whole model."""
        vocabulary = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.n_linear + vocabulary + (2 * self.num_hidden_layers + 1) * self.hidden_size

    def weights_bytes(self, dtype: str, *, quantized: bool) -> int:
        """Bytes of the weights.

        quantized: linear layers in 8 bits; their scales, a thousandth of that, are not counted.
        """
        saved = self.n_linear * (DTYPE_BYTES[dtype] - 1) if quantized else 0
        return self.n_parameters * DTYPE_BYTES[dtype] - saved

    def cache_bytes_per_token(self, dtype: str) -> int:
        """Bytes of keys and values per token."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * DTYPE_BYTES[dtype]


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes of the weights, and of the cache for `concurrency` conversations of `context` tokens each."""

    weights_bytes: int
    cache_bytes: int

    @property
    def total_bytes(self) -> int:
        """Weights and cache together; activations and the server itself come on top."""
        return self.weights_bytes + self.cache_bytes


def read_shape(config_file: Path) -> LlamaShape:
    """Read the sizes from a `config.json` in the Hugging Face layout.

    Raises: BundleError: it is not the config of a Llama.
    """
    try:
        config: dict[str, Any] = json.loads(config_file.read_text(encoding="utf-8"))
        heads = int(config["num_attention_heads"])
        return LlamaShape(
            vocab_size=int(config["vocab_size"]),
            hidden_size=int(config["hidden_size"]),
            intermediate_size=int(config["intermediate_size"]),
            num_hidden_layers=int(config["num_hidden_layers"]),
            num_attention_heads=heads,
            num_key_value_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            max_position_embeddings=int(config["max_position_embeddings"]),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        )
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ZeroDivisionError) as error:
        raise BundleError(f"{config_file.name} is not the config of a Llama: {error}") from error


def estimate_memory(
    shape: LlamaShape, dtype: str, *, concurrency: int, context: int, quantized: bool = False
) -> MemoryEstimate:
    """Memory that a server needs at least.

    quantized: whether its linear layers are in 8 bits.
    concurrency: conversations whose prompts are in the cache at once; the questions on one conversation share it.
    context: tokens per conversation.
    """
    cache = shape.cache_bytes_per_token(dtype) * concurrency * context
    return MemoryEstimate(shape.weights_bytes(dtype, quantized=quantized), cache)
