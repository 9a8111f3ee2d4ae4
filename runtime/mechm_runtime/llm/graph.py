"""The Llama's graph of a bundle, and what it keeps of a conversation that it has read.

The graph takes keys and values of what was read before, and gives those of what it reads. `LlamaGraph` starts anew
every time; `GrowingConversation` remembers, so that the next utterance costs its own tokens alone, as the prefix cache
of a server does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mechm_runtime.bundle.manifest import REBUILD, PartFiles
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.errors import BundleError
from mechm_runtime.llm.questions import CONVERSATION
from mechm_runtime.system.arrays import Arrays

PAST, PRESENT = "past", "present"


class LlamaGraph:
    """Runs the graph on `graph_inputs` with nothing read before. It may serve several threads.

    engine: runs the part's graph.
    Raises: BundleError: the part has no room for what was read before.
    """

    def __init__(self, engine: GraphRunner, part: PartFiles) -> None:
        self._engine = engine
        self._nothing = _nothing_read(part)

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Arrays by input name to arrays by output name."""
        return self._engine.run({**inputs, PAST: self._nothing})

    def growing(self) -> GrowingConversation:
        """The same graph with a memory of its own."""
        return GrowingConversation(self._engine, self._nothing)


class GrowingConversation:
    """Runs the graph on `graph_inputs` and reads only what differs from, or goes beyond, the conversation before.

    It has the memory of one conversation: `n_bytes` for `n_tokens`. Answers are those of `LlamaGraph` but for the
    rounding of keys and values to float16. Calls must follow each other.
    """

    def __init__(self, engine: GraphRunner, nothing: npt.NDArray[np.float16]) -> None:
        self._engine = engine
        self._kept = nothing  # (2 * layers, key heads, capacity, head_dim), of which n_tokens are known
        self._ids = np.zeros(0, np.int64)
        self._soft = np.zeros((0, 0), np.float32)

    @property
    def n_tokens(self) -> int:
        """How many tokens are remembered."""
        return len(self._ids)

    @property
    def n_bytes(self) -> int:
        """How much memory they take."""
        return self._kept.nbytes

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Arrays by input name to arrays by output name."""
        n_conversation = int((inputs["segments"][0] == CONVERSATION).sum())
        ids = inputs["input_ids"][0, :n_conversation]
        soft = _by_token(inputs, n_conversation)
        known = self._in_common(ids, soft)
        outputs = self._engine.run({**_without(inputs, known), PAST: self._kept[:, :, :known]})
        self._remember(outputs[PRESENT], known, n_conversation)
        self._ids, self._soft = ids, soft
        return outputs

    def _in_common(self, ids: npt.NDArray[np.int64], soft: npt.NDArray[np.float32]) -> int:
        """How many tokens this conversation and the one before have in common at their start."""
        n = min(len(ids), len(self._ids))
        if self._soft.shape[1] != soft.shape[1]:
            return 0
        words = np.isnan(soft[:n]) & np.isnan(self._soft[:n])
        same = (ids[:n] == self._ids[:n]) & ((soft[:n] == self._soft[:n]) | words).all(1)
        return n if same.all() else int(same.argmin())

    def _remember(self, present: npt.NDArray[np.float16], known: int, n_tokens: int) -> None:
        if n_tokens > self._kept.shape[2]:
            # Twice the room, so that a conversation of n tokens is copied less than twice.
            shape = (*self._kept.shape[:2], 2 * n_tokens, self._kept.shape[3])
            grown = np.empty(shape, np.float16)
            grown[:, :, :known] = self._kept[:, :, :known]
            self._kept = grown
        self._kept[:, :, known:n_tokens] = present


def _by_token(inputs: Arrays, n_tokens: int) -> npt.NDArray[np.float32]:
    """What stands in the place of each token's embedding, float32 (n_tokens, D); NaN where the token itself does."""
    tokens = inputs["soft_tokens"]
    rows = np.full((n_tokens, tokens.shape[1]), np.nan, np.float32)
    inside = inputs["soft_at"] < n_tokens
    rows[inputs["soft_at"][inside]] = tokens[inside]
    return rows


def _without(inputs: Arrays, n_tokens: int) -> dict[str, npt.NDArray[Any]]:
    """The inputs without their first tokens."""
    left = {name: inputs[name][:, n_tokens:] for name in ("input_ids", "position_ids", "segments")}
    later = inputs["soft_at"] >= n_tokens
    return {
        **left,
        "emotion_at": inputs["emotion_at"] - n_tokens,
        "cause_at": inputs["cause_at"] - n_tokens,
        "soft_tokens": inputs["soft_tokens"][later],
        "soft_at": inputs["soft_at"][later] - n_tokens,
    }


def _nothing_read(part: PartFiles) -> npt.NDArray[np.float16]:
    """float16 (2 * layers, key heads, 0, head_dim)."""
    for tensor in part.inputs:
        if tensor.name == PAST:
            return np.zeros([axis if isinstance(axis, int) else 0 for axis in tensor.axes], np.float16)
    raise BundleError(f"the {part.name} part takes no {PAST}", hint=REBUILD)
