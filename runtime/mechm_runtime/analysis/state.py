"""What is known of utterances on their way from words and recordings to an answer.

It holds; it neither reads (`senses`) nor decides (`decision`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from mechm_runtime.analysis.deadline import CostEstimator, Deadline
from mechm_runtime.bundle.config import FusionWindows
from mechm_runtime.errors import LlmUnavailableError
from mechm_runtime.fusion.inputs import FusionInputs
from mechm_runtime.fusion.run import FusionScores
from mechm_runtime.types import Utterance


@dataclass(slots=True)
class Work:
    """What is known so far, why things are missing, and where time went.

    inputs: what the encoders found. missing: modality -> why it is missing, an utterance at a time.
    scores: the fusion's, then with the Llama's weighed in. is_advised: whether they are.
    n_tokens: of the words, where what they cost is to be learnt.
    costs: what learns how long stages take; None for nothing. deadline: of the request, where it has one.
    timings_ms: stage -> milliseconds in which it ran, once it is finished; stages that ran side by side share some.
    """

    inputs: FusionInputs
    missing: list[dict[str, str]]
    scores: FusionScores = field(init=False)
    is_advised: bool = False
    timings_ms: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    n_tokens: int = 0
    costs: CostEstimator | None = None
    deadline: Deadline | None = None
    _ran: list[tuple[str, float, float]] = field(default_factory=list)

    @classmethod
    def on(cls, utterances: Sequence[Utterance], sizes: FusionWindows) -> Work:
        """Nothing known yet."""
        return cls(FusionInputs.absent(utterances, sizes), [{} for _ in utterances])

    @contextmanager
    def timed(self, stage: str, units: float = 0.0) -> Iterator[None]:
        """Adds what happens inside to a stage's time. From any thread.

        units: how much of the stage it is, where what it costs is to be learnt: tokens, seconds of sound, frames.
        """
        start = time.perf_counter()
        try:
            yield
            if self.costs is not None:
                self.costs.observe(stage, units, 1000 * (time.perf_counter() - start))
        finally:
            self._ran.append((stage, start, time.perf_counter()))
            if self.deadline is not None:
                self.deadline.finish(stage, units)

    @contextmanager
    def advised(self) -> Iterator[None]:
        """Around the Llama's turn: where it does not answer, the scores stay the fusion's, and the result says why."""
        try:
            with self.timed("llm", self.n_tokens):
                yield
            self.is_advised = True
        except LlmUnavailableError as error:
            self.note_unadvised(str(error))

    def asks_llm(self) -> bool:
        """Whether there are words, and time, to ask the Llama about them; else the result says why not."""
        if not self.inputs.text_mask.any():
            return False
        if reason := self.left_out("llm"):
            self.note_unadvised(reason)
        return not reason

    def note_unadvised(self, reason: str) -> None:
        """Say why the Llama told nothing of what has words."""
        for index in self.inputs.text_mask.nonzero()[0]:
            self.missing[index]["llm"] = reason

    def left_out(self, stage: str) -> str:
        """Why there is no time for a stage; empty where there is."""
        return "" if self.deadline is None or self.deadline.admits(stage) else self.deadline.reason

    def finish(self) -> dict[str, float]:
        """Milliseconds a stage, with the total since the start."""
        until: dict[str, float] = {}
        for stage, start, end in sorted(self._ran, key=lambda run: run[1]):
            # What ran twice at the same time counts once.
            new = max(0.0, end - max(start, until.get(stage, start)))
            self.timings_ms[stage] = self.timings_ms.get(stage, 0.0) + 1000 * new
            until[stage] = max(end, until.get(stage, end))
        self._ran.clear()
        self.timings_ms["total"] = 1000 * (time.perf_counter() - self.started)
        return {stage: round(value, 3) for stage, value in self.timings_ms.items()}

    @property
    def has_evidence(self) -> bool:
        """Whether anything is known of any utterance."""
        return bool(np.any(self.inputs.text_mask) or self.inputs.evident().any())
