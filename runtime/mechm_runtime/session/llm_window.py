"""What the Llama has read of a session, and its questions on the newest utterances.

It reads each utterance once and remembers it (`GrowingConversation`, or a server's prefix cache). When its view is full
it starts anew with the last utterances (`SessionConfig.llm_turns`); that is read ahead in a lane while people speak, so
that no utterance waits for it.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mechm_runtime.analysis.state import Work
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.fusion.run import FusionScores
from mechm_runtime.llm.graph import GrowingConversation, LlamaGraph
from mechm_runtime.llm.questions import CONVERSATION
from mechm_runtime.llm.rescoring import Adviser
from mechm_runtime.llm.scorer import Asking
from mechm_runtime.session.config import SessionConfig
from mechm_runtime.session.history import View
from mechm_runtime.system.after_fork import tell_after_fork
from mechm_runtime.system.arrays import Arrays
from mechm_runtime.system.thread_pool import Lanes


class LlamaWindow:
    """Asks the Llama about a session's newest utterances. Calls must follow each other."""

    def __init__(self, adviser: Adviser, config: SessionConfig, lanes: Lanes) -> None:
        self._adviser = adviser
        self._config = config
        self._lanes = lanes
        graph = adviser.reader.engine
        self._graph = graph if isinstance(graph, LlamaGraph) else None
        self._memory = None if self._graph is None else self._graph.growing()
        self._ahead: Future[tuple[int, GrowingConversation]] | None = None
        self._running = threading.Lock()
        self._n_read = 0
        self._n_newest = 0
        tell_after_fork(self)

    @property
    def runner(self) -> GraphRunner:
        """What answers `steps`: a server itself, which can be awaited, or this window."""
        return self if self._memory is not None else self._adviser.reader.engine

    @property
    def n_bytes(self) -> int:
        """Memory that what was read takes in this process."""
        return 0 if self._memory is None else self._memory.n_bytes

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Arrays by input name to arrays by output name, with what was read before."""
        if self._memory is None:
            raise RuntimeError("a server remembers for itself")
        # A run whose awaiting was cancelled goes on in its thread; the next must not change what it remembers.
        with self._running:
            return self._memory.run(inputs)

    def steps(self, view: View, fusion: FusionScores, work: Work) -> Asking[View]:
        """Ask about the newest utterances, where they have words and the fusion is not sure of them.

        work: of the newest utterance alone, for what the Llama does not get to read.
        Returns: the view with the answers filled in.
        """
        newest = np.arange(len(view)) >= len(view) - 1 - self._config.revised_turns
        wanted = newest & self._adviser.unsure(fusion) & view.inputs.text_mask
        last = slice(-1, None)
        self._adviser.note_unread(view.utterances[last], view.inputs.of(last), wanted[last], work.missing)
        positions = np.flatnonzero(wanted)
        if not len(positions):
            return view
        first, packed = self._fitting(view, positions)
        n_read = int((packed["segments"] == CONVERSATION).sum())
        self._n_newest = packed["input_ids"].shape[1] - min(self._n_read, n_read)
        self._n_read = n_read
        view.answers.fill(positions, (yield packed))
        return replace(view, llm_first=view.first + first)

    def read_ahead(self, view: View) -> None:
        """Have read in a lane what the next utterance will need, where it will not fit behind what is remembered."""
        full = self._n_read + self._n_newest > self._config.llm_tokens
        overtaken = view.llm_first < view.first + max(0, len(view) + 1 - self._config.turns)
        if self._graph is not None and self._ahead is None and (full or overtaken):
            first = max(0, view.llm_first - view.first, len(view) + 1 - self._config.llm_turns)
            # The graph does not run without a question; one is asked, and its answer not looked at.
            packed = self._packed(view, first, np.array([len(view) - 1]))
            if packed["input_ids"].shape[1] <= self._config.llm_tokens:
                self._ahead = self._lanes.submit(_read, self._graph.growing(), packed, view.first + first)

    def after_fork(self) -> None:
        """A thread that was reading is not there."""
        self._ahead = None
        self._running = threading.Lock()

    def _fitting(self, view: View, positions: npt.NDArray[np.int64]) -> tuple[int, dict[str, npt.NDArray[Any]]]:
        """The first utterance that the Llama reads, and what it is given.

        Where it would be too much it starts anew with fewer utterances, at last with those that are asked about.
        """
        first = view.llm_first - view.first
        # Where its beginning is out of view, every utterance would from now on be read as another number.
        if first >= 0:
            packed = self._packed(view, first, positions)
            if packed["input_ids"].shape[1] <= self._config.llm_tokens:
                return first, packed
        at_most = int(positions[0])
        first = min(max(0, first, len(view) - self._config.llm_turns), at_most)
        packed = self._packed(view, first, positions)
        while packed["input_ids"].shape[1] > self._config.llm_tokens and first < at_most:
            first += 1
            packed = self._packed(view, first, positions)
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            began, memory = ahead.result()
            if began == view.first + first:
                self._memory = memory
        return first, packed

    def _packed(self, view: View, first: int, positions: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        soft = None if view.soft is None else view.soft.of(slice(first, None))
        return self._adviser.reader.packed(view.utterances[first:], (positions - first).tolist(), soft)


def _read(memory: GrowingConversation, packed: Arrays, first: int) -> tuple[int, GrowingConversation]:
    memory.run(packed)
    return first, memory
