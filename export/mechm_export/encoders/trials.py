"""Sizes and inputs that an encoder is traced with and compared on, and the limits of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from mechm_export.encoders.axes import BATCH
from mechm_export.graphs.part import Feeds
from mechm_runtime.errors import InputError

PART = "encoder"
"""The name of what is exported."""
MASK = "attention_mask"
TOKEN_TYPES = "token_type_ids"  # noqa: S105 (an input's name)
LONGEST_TRIAL = 512
FIRST_WORD = 5
"""Ids below it are often padding and marks; trials are made of others, so that padding stands where the mask says."""


def trial_sizes(
    sizes: Mapping[str, int | str], lengths: Mapping[str, tuple[int, ...]], batches: tuple[int, ...]
) -> tuple[Mapping[str, int], ...]:
    """Sizes of the dynamic axes to compare on; the first has several inputs, since a traced 1 would stay 1."""
    tried: list[dict[str, int]] = []
    n_trials = len(next(iter(lengths.values()), batches))
    for number in range(n_trials):
        trial = {BATCH: batches[number], **{axis: values[number] for axis, values in lengths.items()}}
        trial = {axis: size for axis, size in trial.items() if isinstance(sizes[axis], str)}
        if trial not in tried:
            tried.append(trial)
    return tuple(tried)


def word_inputs(
    shape: tuple[int | str, ...],
    vocab_size: int,
    names: Sequence[str],
    end: int | None,
    sizes: Mapping[str, int],
    random: np.random.Generator,
    *,
    pad: int | None = None,
    pairs: bool = False,
) -> Feeds:
    """Random words and a mask of ones, then padding.

    shape: axes of all inputs. names: of the inputs. end: the id that every text ends with, in models that look for it.
    pad: the id behind a text's end, where models look for it; None for any word. pairs: token types 0 then 1, else 0.
    """
    batch, tokens = (axis if isinstance(axis, int) else sizes[axis] for axis in shape)
    ids = random.integers(min(FIRST_WORD, vocab_size - 1), vocab_size, (batch, tokens))
    lengths = random.integers(max(1, tokens // 2), tokens + 1, (batch, 1))
    lengths[0] = tokens
    if end is not None:
        ids[ids == end] = vocab_size // 2
        # Where `end` is the old CLIP configs' 2, the text ends with the largest id.
        np.put_along_axis(ids, lengths - 1, vocab_size - 1 if end == 2 else end, 1)
    mask = (np.arange(tokens)[None] < lengths).astype(np.int64)
    if pad is not None:
        ids = np.where(mask == 1, np.where(ids == pad, (pad + 1) % vocab_size, ids), pad)
    types = (np.arange(tokens)[None] >= lengths // 2) & (mask == 1) if pairs else np.zeros_like(mask)
    feeds: Feeds = {"input_ids": ids.astype(np.int64), MASK: mask, TOKEN_TYPES: types.astype(np.int64)}
    return {name: feeds[name] for name in names}


def most_tokens(model: nn.Module) -> int:
    """Tokens that a text model has positions for, or LONGEST_TRIAL where any number goes.

    RoBERTa and its relatives count positions from behind padding's.
    """
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    config: Any = model.config
    stated = getattr(config, "max_position_embeddings", None)
    return stated if isinstance(stated, int) and stated > 0 else LONGEST_TRIAL


def check_limit(sizes: Mapping[str, int | str], axis: str, longest: int) -> None:
    """Raises: InputError: a fixed axis is longer than the encoder's positions."""
    size = sizes[axis]
    if isinstance(size, int) and size > longest:
        raise InputError(f"{axis}={size} is longer than this encoder's {longest}", hint=f"{axis}={longest}")


def attention_heads(config: Any) -> int:
    """Attention heads of every layer, or 0 where they differ or the config does not say."""
    names = ("num_attention_heads", "encoder_attention_heads", "n_heads")
    n_heads = next((getattr(config, name) for name in names if hasattr(config, name)), 0)
    shared = getattr(config, "num_key_value_heads", None)
    return n_heads if isinstance(n_heads, int) and shared in (None, n_heads) else 0
