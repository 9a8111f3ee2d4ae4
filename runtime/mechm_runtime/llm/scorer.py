"""Ask the Llama: a conversation in, log-probabilities of the answers out, every question in one forward pass a window.

What runs the graph is given (`engine`); what is asked, and how, is in `questions`. It combines nothing with the
fusion's scores (`combination`) and decides nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.llm.questions import CAUSE_ANSWERS, PackedQuestions, QuestionTokenizer
from mechm_runtime.system.arrays import Arrays
from mechm_runtime.system.progress import StageProgress
from mechm_runtime.types import EMOTIONS, Utterance

T = TypeVar("T")

Asking = Generator[Arrays, Arrays, T]
"""Yields a graph's inputs, is sent its outputs, and returns what it made of them."""


@runtime_checkable
class AsyncRunner(Protocol):
    """A graph's runner that can be awaited."""

    async def run_async(self, inputs: Arrays) -> Mapping[str, npt.NDArray[Any]]:
        """Arrays by input name to arrays by output name."""


@dataclass(frozen=True, slots=True)
class LlamaScores:
    """The Llama's answers on a conversation of U utterances.

    asked: bool (U,); only utterances with words are asked about, the rows of the others mean nothing.
    emotions: float32 (U, 7), log-probabilities. causes: float32 (U, answers), log-probabilities, `NO_CAUSE` last.
    """

    asked: npt.NDArray[np.bool_]
    emotions: npt.NDArray[np.float32]
    causes: npt.NDArray[np.float32]

    @classmethod
    def unasked(cls, n: int) -> LlamaScores:
        """Room for the answers on n utterances."""
        emotions = np.zeros((n, len(EMOTIONS)), np.float32)
        return cls(np.zeros(n, bool), emotions, np.zeros((n, len(CAUSE_ANSWERS) + 1), np.float32))

    def fill(self, positions: npt.NDArray[np.int64], outputs: Arrays) -> None:
        """Take over what a graph answered on the utterances at some positions."""
        self.asked[positions] = True
        self.emotions[positions] = outputs["emotion_log_probabilities"]
        self.causes[positions] = outputs["cause_log_probabilities"]


@dataclass(frozen=True, slots=True)
class SoftTokens:
    """What was heard and seen of U utterances, in the Llama's embedding space.

    tokens: float32 (U, soft tokens, D). evident: bool (U,), where something was; the tokens of the others mean nothing.
    """

    tokens: npt.NDArray[np.float32]
    evident: npt.NDArray[np.bool_]

    def of(self, rows: slice) -> SoftTokens:
        """Those of some of the utterances."""
        return SoftTokens(self.tokens[rows], self.evident[rows])


class LlamaReader:
    """Asks about every utterance that has words.

    hidden_size: width of the Llama's embeddings.
    """

    def __init__(self, tokenizer: QuestionTokenizer, engine: GraphRunner, hidden_size: int) -> None:
        self.engine = engine
        self._tokenizer = tokenizer
        self.hidden_size = hidden_size

    def read(
        self,
        utterances: Sequence[Utterance],
        soft: SoftTokens | None = None,
        progress: StageProgress | None = None,
        wanted: npt.NDArray[np.bool_] | None = None,
    ) -> LlamaScores:
        """Score a conversation of any length, window by window.

        soft: what stands beside the words; None for words alone.
        progress: called with utterances done and their number.
        wanted: bool (U,), which utterances to ask about; None for all. Those without words are never asked about.
        Raises: ValueError: `soft` has another shape, or tokens that are not finite.
        """
        return answered(self.steps(utterances, soft, progress, wanted), self.engine)

    def steps(
        self,
        utterances: Sequence[Utterance],
        soft: SoftTokens | None = None,
        progress: StageProgress | None = None,
        wanted: npt.NDArray[np.bool_] | None = None,
    ) -> Asking[LlamaScores]:
        """The same as a generator of what is asked, for `answered` or `answered_async`: it waits for nothing."""
        n = len(utterances)
        asked = np.array([bool((u.text or "").strip()) for u in utterances])
        if wanted is not None:
            asked &= wanted
        scores = LlamaScores.unasked(n)
        for first, last, core_first, core_last in self._tokenizer.windows(utterances, self._evident(soft, n)):
            positions = core_first + np.flatnonzero(asked[core_first:core_last])
            if len(positions):
                inside = None if soft is None else soft.of(slice(first, last))
                packed = self.packed(utterances[first:last], (positions - first).tolist(), inside)
                scores.fill(positions, (yield packed))
            if progress is not None:
                progress(core_last, n)
        return scores

    def packed(
        self, utterances: Sequence[Utterance], positions: Sequence[int], soft: SoftTokens | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """One window as the graph takes it: what was said, and the questions on some of it.

        Raises: ValueError: as `read`.
        """
        n = len(utterances)
        evident = self._evident(soft, n)
        tokens = np.zeros((n, self._tokenizer.config.soft_tokens, self.hidden_size), np.float32)
        return graph_inputs(
            self._tokenizer.pack(utterances, positions, evident), tokens if soft is None else soft.tokens
        )

    def overlong(self, utterances: Sequence[Utterance]) -> dict[int, int]:
        """Positions of utterances that are not read as a whole, and how many tokens they have."""
        return self._tokenizer.overlong(utterances)

    def _evident(self, soft: SoftTokens | None, n: int) -> list[bool]:
        """Which of n utterances have soft tokens."""
        if soft is None:
            return [False] * n
        shape = (n, self._tokenizer.config.soft_tokens, self.hidden_size)
        if soft.tokens.shape != shape or soft.evident.shape != (n,):
            raise ValueError(f"soft tokens {soft.tokens.shape} for {soft.evident.shape} utterances, not {shape}")
        if not np.isfinite(soft.tokens[soft.evident]).all():
            raise ValueError("a soft token is not finite")
        evident: list[bool] = soft.evident.tolist()
        return evident


def answered(asking: Asking[T], engine: GraphRunner) -> T:
    """Run what is asked, and return what comes of it."""
    step = _advance(asking, None)
    while isinstance(step, _Question):
        step = _advance(asking, engine.run(step.inputs))
    return step


async def answered_async(asking: Asking[T], engine: GraphRunner) -> T:
    """The same without blocking the event loop: an engine that can be awaited is, all else is done in threads."""
    step = await asyncio.to_thread(_advance, asking, None)
    while isinstance(step, _Question):
        if isinstance(engine, AsyncRunner):
            outputs = await engine.run_async(step.inputs)
        else:
            outputs = await asyncio.to_thread(engine.run, step.inputs)
        step = await asyncio.to_thread(_advance, asking, outputs)
    return step


@dataclass(frozen=True, slots=True)
class _Question:
    inputs: Arrays


def _advance(asking: Asking[T], outputs: Arrays | None) -> _Question | T:
    """What is asked next, or what came of it all. A StopIteration could not cross from a thread to an event loop."""
    try:
        return _Question(next(asking) if outputs is None else asking.send(outputs))
    except StopIteration as end:
        result: T = end.value
        return result


def graph_inputs(packed: PackedQuestions, soft_tokens: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
    """Packed questions as the graph takes them: a batch of one.

    soft_tokens: float32 (U, soft tokens, D), of the packed utterances.
    """
    return {
        "input_ids": packed.input_ids[None],
        "position_ids": packed.position_ids[None],
        "segments": packed.segments[None],
        "emotion_at": packed.emotion_at,
        "cause_at": packed.cause_at,
        "soft_tokens": soft_tokens.reshape(-1, soft_tokens.shape[-1])[packed.soft_of],
        "soft_at": packed.soft_at,
    }
