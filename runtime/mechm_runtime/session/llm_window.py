"""The Llama's context in a session, and the questions on the newest utterances.

The Llama reads each utterance once and keeps its keys and values (`CachedLlamaGraph`, or a server's prefix cache).
When the context is full, a new one begins with the last utterances (`SessionConfig.llm_turns`); it is computed ahead in
a lane while people speak, so that no utterance waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

import numpy as np

from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.fusion.run import FusionScores
from mechm_runtime.llm.graph import CachedLlamaGraph, LlamaGraph
from mechm_runtime.llm.questions import CONVERSATION
from mechm_runtime.llm.rescoring import LlmRescorer
from mechm_runtime.llm.scorer import EngineSteps
from mechm_runtime.session.config import SessionConfig
from mechm_runtime.session.history import History
from mechm_runtime.system.after_fork import tell_after_fork
from mechm_runtime.system.arrays import Array, Arrays, Int64Array
from mechm_runtime.system.thread_pool import ThreadPool


class LlmWindow:
    """Asks the Llama about a session's newest utterances. Calls must not overlap."""

    def __init__(self, rescorer: LlmRescorer, config: SessionConfig, lanes: ThreadPool) -> None:
        self._rescorer = rescorer
        self._config = config
        self._lanes = lanes
        graph = rescorer.scorer.engine
        self._graph = graph if isinstance(graph, LlamaGraph) else None
        self._memory = None if self._graph is None else self._graph.with_cache()
        self._ahead: Future[tuple[int, CachedLlamaGraph]] | None = None
        self._running = threading.Lock()
        self._n_read = 0
        self._n_newest = 0
        tell_after_fork(self)

    @property
    def runner(self) -> GraphRunner:
        """The runner of the requests that `steps` yields: a server, which can be awaited, or this window."""
        return self if self._memory is not None else self._rescorer.scorer.engine

    @property
    def n_bytes(self) -> int:
        """Bytes of the kept keys and values in this process."""
        return 0 if self._memory is None else self._memory.n_bytes

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Arrays by input name to arrays by output name, continuing the context."""
        if self._memory is None:
            raise RuntimeError("a server keeps its context itself")
        # A run whose awaiting was cancelled goes on in its thread; the next one must not change its context meanwhile.
        with self._running:
            return self._memory.run(inputs)

    def steps(self, history: History, fusion: FusionScores, missing: Sequence[dict[str, str]]) -> EngineSteps[History]:
        """Ask about the newest utterances that have words and of which the fusion is not sure.

        missing: reasons of the newest utterance alone; parts of it that the Llama does not read are added.
        Returns: the history with the answers filled in.
        """
        newest = np.arange(len(history)) >= len(history) - 1 - self._config.revised_turns
        wanted = newest & self._rescorer.is_uncertain(fusion) & history.inputs.text_mask
        last = slice(-1, None)
        self._rescorer.note_unread(history.utterances[last], history.inputs.select(last), wanted[last], missing)
        positions = np.flatnonzero(wanted)
        if not len(positions):
            return history
        first, packed = self._fitting(history, positions)
        n_read = int((packed["segments"] == CONVERSATION).sum())
        self._n_newest = packed["input_ids"].shape[1] - min(self._n_read, n_read)
        self._n_read = n_read
        history.answers.fill(positions, (yield packed))
        return replace(history, llm_first=history.first + first)

    def read_ahead(self, history: History) -> None:
        """Compute a new context in a lane, where the next utterance will not fit into the present one."""
        is_full = self._n_read + self._n_newest > self._config.llm_tokens
        is_dropped = history.llm_first < history.first + max(0, len(history) + 1 - self._config.turns)
        if self._graph is not None and self._ahead is None and (is_full or is_dropped):
            first = max(0, history.llm_first - history.first, len(history) + 1 - self._config.llm_turns)
            # The graph does not run without a question; the answer to this one is not used.
            packed = self._packed(history, first, np.array([len(history) - 1]))
            if packed["input_ids"].shape[1] <= self._config.llm_tokens:
                self._ahead = self._lanes.submit(_compute, self._graph.with_cache(), packed, history.first + first)

    def after_fork(self) -> None:
        """Forget the context being computed: its thread does not exist in this process."""
        self._ahead = None
        self._running = threading.Lock()

    def _fitting(self, history: History, positions: Int64Array) -> tuple[int, dict[str, Array]]:
        """The first utterance of the context, and the inputs of the graph.

        Where the context would be too long, a new one begins with fewer utterances, at least those asked about.
        """
        first = history.llm_first - history.first
        # Where its beginning was dropped, every utterance would have another number from now on.
        if first >= 0:
            packed = self._packed(history, first, positions)
            if packed["input_ids"].shape[1] <= self._config.llm_tokens:
                return first, packed
        latest = int(positions[0])
        first = min(max(0, first, len(history) - self._config.llm_turns), latest)
        packed = self._packed(history, first, positions)
        while packed["input_ids"].shape[1] > self._config.llm_tokens and first < latest:
            first += 1
            packed = self._packed(history, first, positions)
        ahead, self._ahead = self._ahead, None
        # One that has not begun would wait for others in the lanes: this run reads the words itself then.
        if ahead is not None and not ahead.cancel():
            ahead_first, memory = ahead.result()
            if ahead_first == history.first + first:
                self._memory = memory
        return first, packed

    def _packed(self, history: History, first: int, positions: Int64Array) -> dict[str, Array]:
        soft = None if history.soft is None else history.soft.select(slice(first, None))
        return self._rescorer.scorer.pack(history.utterances[first:], (positions - first).tolist(), soft)


def _compute(memory: CachedLlamaGraph, packed: Arrays, first: int) -> tuple[int, CachedLlamaGraph]:
    memory.run(packed)
    return first, memory
