"""Scores the answers to the Llama's questions: a conversation in, log-probabilities out, one forward pass per window.

The questions are made in `questions`; an engine that is passed in runs the graph. Combining the answers with the
fusion's scores (`mechm_runtime.fusion.combination`) and decisions on them are made elsewhere.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.llm.questions import CAUSE_ANSWERS, PackedQuestions, QuestionTokenizer
from mechm_runtime.system.arrays import Array, Arrays, BoolArray, Float32Array, Int64Array
from mechm_runtime.system.progress import StageProgress
from mechm_runtime.system.thread_pool import ThreadPool
from mechm_runtime.system.time_limit import check_time, seconds_left
from mechm_runtime.types import EMOTIONS, Utterance

T = TypeVar("T")

EngineSteps = Generator[Arrays, Arrays, T]
"""Yields inputs of a graph, is sent the outputs, and returns a result; see `run_steps`."""


@runtime_checkable
class AsyncRunner(Protocol):
    """Runs a graph so that it can be awaited."""

    async def run_async(self, inputs: Arrays) -> Mapping[str, Array]:
        """Arrays by input name to arrays by output name."""


@dataclass(frozen=True, slots=True)
class LlamaScores:
    """The Llama's answers on a conversation of U utterances.

    asked: bool (U,); only utterances with words are asked about, the rows of the others are undefined.
    emotions: float32 (U, 7), log-probabilities. causes: float32 (U, answers), log-probabilities, `NO_CAUSE` last.
    """

    asked: BoolArray
    emotions: Float32Array
    causes: Float32Array

    @classmethod
    def empty(cls, n: int) -> LlamaScores:
        """Scores of n utterances of which none has been asked about; `fill` sets them."""
        emotions = np.zeros((n, len(EMOTIONS)), np.float32)
        return cls(np.zeros(n, bool), emotions, np.zeros((n, len(CAUSE_ANSWERS) + 1), np.float32))

    def fill(self, positions: Int64Array, outputs: Arrays) -> None:
        """Set the rows of the utterances at `positions` to a graph's outputs."""
        self.asked[positions] = True
        self.emotions[positions] = outputs["emotion_log_probabilities"]
        self.causes[positions] = outputs["cause_log_probabilities"]


@dataclass(frozen=True, slots=True)
class SoftTokens:
    """Voice, face and frames of U utterances as vectors in the Llama's embedding space.

    tokens: float32 (U, soft tokens, D). has_nonverbal: bool (U,), the utterances that have voice, face or frames; the
        tokens of the others are undefined.
    """

    tokens: Float32Array
    has_nonverbal: BoolArray

    def select(self, rows: slice) -> SoftTokens:
        """The soft tokens of some of the utterances: views of the same arrays."""
        return SoftTokens(self.tokens[rows], self.has_nonverbal[rows])


class LlamaScorer:
    """Asks the Llama about the utterances of a conversation that have words.

    engine: runs the Llama's graph. hidden_size: width of the Llama's embeddings.
    """

    def __init__(self, tokenizer: QuestionTokenizer, engine: GraphRunner, hidden_size: int) -> None:
        self.engine = engine
        self._tokenizer = tokenizer
        self.hidden_size = hidden_size

    def score(
        self,
        utterances: Sequence[Utterance],
        soft: SoftTokens | None = None,
        progress: StageProgress | None = None,
        wanted: BoolArray | None = None,
    ) -> LlamaScores:
        """Score a conversation of any length, window by window.

        soft: soft tokens of the utterances; None for words alone.
        progress: called with the number of utterances done and of all utterances.
        wanted: bool (U,), the utterances to ask about; None for all. Those without words are never asked about.
        Raises: ValueError: `soft` has another shape, or tokens that are not finite.
        """
        return run_steps(self.score_steps(utterances, soft, progress, wanted), self.engine)

    def score_steps(
        self,
        utterances: Sequence[Utterance],
        soft: SoftTokens | None = None,
        progress: StageProgress | None = None,
        wanted: BoolArray | None = None,
    ) -> EngineSteps[LlamaScores]:
        """`score` as a generator of graph inputs, for `run_steps` or `run_steps_async`; it does not block itself.

        Where the time limit of the request passes between two windows, the rest is not asked about.
        Raises: OutOfTimeError: it had passed before the first.
        """
        check_time()
        n = len(utterances)
        asked = np.array([bool((u.text or "").strip()) for u in utterances])
        if wanted is not None:
            asked &= wanted
        scores = LlamaScores.empty(n)
        for first, last, core_first, core_last in self._tokenizer.windows(utterances, self._has_nonverbal(soft, n)):
            positions = core_first + np.flatnonzero(asked[core_first:core_last])
            if len(positions):
                window_soft = None if soft is None else soft.select(slice(first, last))
                packed = self.pack(utterances[first:last], (positions - first).tolist(), window_soft)
                scores.fill(positions, (yield packed))
            if progress is not None:
                progress(core_last, n)
            if seconds_left() <= 0:
                break
        return scores

    def pack(
        self, utterances: Sequence[Utterance], positions: Sequence[int], soft: SoftTokens | None = None
    ) -> dict[str, Array]:
        """Graph inputs for one window: the conversation, and the questions on the utterances at `positions`.

        Raises: ValueError: as `score`.
        """
        n = len(utterances)
        has_nonverbal = self._has_nonverbal(soft, n)
        tokens = np.zeros((n, self._tokenizer.config.soft_tokens, self.hidden_size), np.float32)
        return graph_inputs(
            self._tokenizer.pack(utterances, positions, has_nonverbal), tokens if soft is None else soft.tokens
        )

    def overlong(self, utterances: Sequence[Utterance]) -> dict[int, int]:
        """Position -> number of tokens, of utterances that are shortened because they have too many."""
        return self._tokenizer.overlong(utterances)

    def _has_nonverbal(self, soft: SoftTokens | None, n: int) -> list[bool]:
        """For each of n utterances whether it has soft tokens."""
        if soft is None:
            return [False] * n
        shape = (n, self._tokenizer.config.soft_tokens, self.hidden_size)
        if soft.tokens.shape != shape or soft.has_nonverbal.shape != (n,):
            raise ValueError(f"soft tokens {soft.tokens.shape} for {soft.has_nonverbal.shape} utterances, not {shape}")
        if not np.isfinite(soft.tokens[soft.has_nonverbal]).all():
            raise ValueError("a soft token is not finite")
        has_nonverbal: list[bool] = soft.has_nonverbal.tolist()
        return has_nonverbal


def run_steps(steps: EngineSteps[T], engine: GraphRunner) -> T:
    """Run a generator of graph inputs with an engine, and return the generator's result."""
    step = _advance(steps, None)
    while isinstance(step, _Request):
        step = _advance(steps, engine.run(step.inputs))
    return step


async def run_steps_async(steps: EngineSteps[T], engine: GraphRunner, threads: ThreadPool) -> T:
    """`run_steps` without blocking the event loop: an `AsyncRunner` is awaited, everything else runs in `threads`."""
    step = await threads.run_async(_advance, steps, None)
    while isinstance(step, _Request):
        if isinstance(engine, AsyncRunner):
            outputs = await engine.run_async(step.inputs)
        else:
            outputs = await threads.run_async(engine.run, step.inputs)
        step = await threads.run_async(_advance, steps, outputs)
    return step


@dataclass(frozen=True, slots=True)
class _Request:
    inputs: Arrays


def _advance(steps: EngineSteps[T], outputs: Arrays | None) -> _Request | T:
    """The next request, or the result: a StopIteration cannot pass from a thread to an event loop."""
    try:
        return _Request(next(steps) if outputs is None else steps.send(outputs))
    except StopIteration as end:
        result: T = end.value
        return result


def graph_inputs(packed: PackedQuestions, soft_tokens: Float32Array) -> dict[str, Array]:
    """Inputs of the Llama's graph for packed questions, a batch of one.

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
