"""Runs the Llama's graph of a bundle, with or without a cache of the keys and values of a conversation.

The graph takes keys and values of tokens that it read before, and returns those of the tokens that it reads.
`LlamaGraph` starts without any in every run; `CachedLlamaGraph` keeps them, so that the next utterance costs its own
tokens alone, as with the prefix cache of a server.
"""

from __future__ import annotations

import numpy as np

from mechm_runtime.bundle.manifest import REBUILD, PartFiles
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.errors import BundleError
from mechm_runtime.llm.questions import CONVERSATION
from mechm_runtime.system.arrays import Array, Arrays, Float16Array, Float32Array, Int64Array

PAST, PRESENT = "past", "present"


class LlamaGraph:
    """Runs the graph on `graph_inputs` without a cache. Several threads may share it.

    engine: runs the part's graph.
    Raises: BundleError: the graph has no input for keys and values.
    """

    def __init__(self, engine: GraphRunner, part: PartFiles) -> None:
        self._engine = engine
        self._empty_cache = _empty_cache(part)

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Arrays by input name to arrays by output name."""
        return self._engine.run({**inputs, PAST: self._empty_cache})

    def with_cache(self) -> CachedLlamaGraph:
        """The same graph with a cache of its own."""
        return CachedLlamaGraph(self._engine, self._empty_cache)


class CachedLlamaGraph:
    """Runs the graph on `graph_inputs`; reads only the tokens behind the common beginning with the last conversation.

    The cache holds keys and values of one conversation: `n_bytes` for `n_tokens`. Answers are those of `LlamaGraph`
    except for the rounding of keys and values to float16. Not for several threads at once.
    """

    def __init__(self, engine: GraphRunner, empty_cache: Float16Array) -> None:
        self._engine = engine
        self._cache = empty_cache  # (2 * layers, key heads, capacity, head_dim), of which n_tokens are filled
        self._ids = np.zeros(0, np.int64)
        self._soft = np.zeros((0, 0), np.float32)

    @property
    def n_tokens(self) -> int:
        """Number of tokens in the cache."""
        return len(self._ids)

    @property
    def n_bytes(self) -> int:
        """Memory of the cache."""
        return self._cache.nbytes

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Arrays by input name to arrays by output name."""
        n_conversation = int((inputs["segments"][0] == CONVERSATION).sum())
        ids = inputs["input_ids"][0, :n_conversation]
        soft = _soft_token_rows(inputs, n_conversation)
        n_cached = self._n_in_common(ids, soft)
        outputs = self._engine.run({**_without_first(inputs, n_cached), PAST: self._cache[:, :, :n_cached]})
        self._store(outputs[PRESENT], n_cached, n_conversation)
        self._ids, self._soft = ids, soft
        return outputs

    def _n_in_common(self, ids: Int64Array, soft: Float32Array) -> int:
        """Number of tokens at the start that this conversation and the cached one have in common."""
        n = min(len(ids), len(self._ids))
        if self._soft.shape[1] != soft.shape[1]:
            return 0
        words = np.isnan(soft[:n]) & np.isnan(self._soft[:n])
        same = (ids[:n] == self._ids[:n]) & ((soft[:n] == self._soft[:n]) | words).all(1)
        return n if same.all() else int(same.argmin())

    def _store(self, present: Float16Array, n_cached: int, n_tokens: int) -> None:
        """Put keys and values of the tokens from `n_cached` to `n_tokens` into the cache."""
        if n_tokens > self._cache.shape[2]:
            # The capacity doubles, so that a conversation of n tokens is copied less than twice.
            shape = (*self._cache.shape[:2], 2 * n_tokens, self._cache.shape[3])
            larger = np.empty(shape, np.float16)
            larger[:, :, :n_cached] = self._cache[:, :, :n_cached]
            self._cache = larger
        self._cache[:, :, n_cached:n_tokens] = present


def _soft_token_rows(inputs: Arrays, n_tokens: int) -> Float32Array:
    """The soft token at each position, float32 (n_tokens, D); NaN where a word's token stands."""
    tokens = inputs["soft_tokens"]
    rows = np.full((n_tokens, tokens.shape[1]), np.nan, np.float32)
    inside = inputs["soft_at"] < n_tokens
    rows[inputs["soft_at"][inside]] = tokens[inside]
    return rows


def _without_first(inputs: Arrays, n_tokens: int) -> dict[str, Array]:
    """The inputs without their first `n_tokens` tokens."""
    rest = {name: inputs[name][:, n_tokens:] for name in ("input_ids", "position_ids", "segments")}
    later = inputs["soft_at"] >= n_tokens
    return {
        **rest,
        "emotion_at": inputs["emotion_at"] - n_tokens,
        "cause_at": inputs["cause_at"] - n_tokens,
        "soft_tokens": inputs["soft_tokens"][later],
        "soft_at": inputs["soft_at"][later] - n_tokens,
    }


def _empty_cache(part: PartFiles) -> Float16Array:
    """Keys and values of no tokens, float16 (2 * layers, key heads, 0, head_dim).

    Raises: BundleError: the graph has no input for them.
    """
    for tensor in part.inputs:
        if tensor.name == PAST:
            return np.zeros([axis if isinstance(axis, int) else 0 for axis in tensor.axes], np.float16)
    raise BundleError(f"the {part.name} part takes no {PAST}", hint=REBUILD)
