"""Mutable state of one analysis: encoder inputs, reasons for missing modalities, timings.

It is filled by the encoders (`encode`) and read by the decision; it runs nothing itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from mechm_runtime.analysis.deadline import CostEstimator, Deadline, NoDeadline
from mechm_runtime.bundle.config import FusionWindows
from mechm_runtime.bundle.modality import MODALITY_SPECS
from mechm_runtime.errors import LlmUnavailableError
from mechm_runtime.fusion.inputs import FusionInputs
from mechm_runtime.modalities.text_windows import TextWindows
from mechm_runtime.system.arrays import BoolArray
from mechm_runtime.system.time_limit import OutOfTimeError, limited_by
from mechm_runtime.types import Utterance


@dataclass(slots=True)
class Stopwatch:
    """Work that is being timed. done: the amount of it that is done at the end; 0 where nothing is to be learned."""

    done: float


class AnalysisState:
    """State of one analysis, whole when it is made.

    inputs: the encoders' outputs, everything absent at first. missing: one dict per utterance, modality -> why it is
    missing. is_rescored: whether the LLM's answers are part of the scores. n_tokens: of the words, the units of what
    text and LLM cost. windows: the words' tokens for the text encoder; None where they are not known yet. limit: the
    deadline, or what ends a request without one when it is cancelled. deadline: None where there is none.
    timings_ms: stage -> milliseconds, and late_ms: milliseconds after the deadline; both known after `finish`.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        sizes: FusionWindows,
        modalities: Sequence[str],
        *,
        n_tokens: int = 0,
        windows: TextWindows | None = None,
        costs: CostEstimator | None = None,
        limit: Deadline | NoDeadline | None = None,
        started: float | None = None,
    ) -> None:
        """Begin an analysis.

        modalities: those that the pipeline uses. costs: learns how long stages take; None for an analysis that teaches
        nothing. limit: None for no deadline. started: `time.perf_counter` of the request's start; None for now.
        """
        self.inputs = FusionInputs.absent(utterances, sizes)
        self.missing: list[dict[str, str]] = [{} for _ in utterances]
        self.is_rescored = False
        self.n_tokens = n_tokens
        self.windows = windows
        self.limit = NoDeadline() if limit is None else limit
        self.deadline = limit if isinstance(limit, Deadline) else None
        self.late_ms = 0.0
        self.timings_ms: dict[str, float] = {}
        self._modalities = tuple(modalities)
        self._costs = costs
        self._started = time.perf_counter() if started is None else started
        self._runs: list[tuple[str, float, float]] = []

    @contextmanager
    def timed(self, stage: str, units: float = 0.0) -> Iterator[Stopwatch]:
        """Add the time spent inside to a stage's. Thread-safe.

        units: the amount of work, where its cost is to be learned: tokens, seconds of sound, frames, utterances.
        Whoever does less of it sets `Stopwatch.done`.
        """
        start = time.perf_counter()
        watch = Stopwatch(units)
        try:
            yield watch
            if self._costs is not None:
                self._costs.observe(stage, watch.done, 1000 * (time.perf_counter() - start))
        finally:
            self._runs.append((stage, start, time.perf_counter()))
            if self.deadline is not None:
                self.deadline.finish(stage, units)

    @contextmanager
    def llm_stage(self) -> Iterator[None]:
        """Time the LLM's stage; where the LLM does not answer, note why and go on with the scores as they were."""
        started = time.perf_counter()
        try:
            with limited_by(self.limit), self.timed("llm", self.n_tokens):
                yield
            self.is_rescored = True
        except (LlmUnavailableError, OutOfTimeError) as error:
            is_late = isinstance(error, OutOfTimeError)
            self._note_missing_llm(self.limit.reason if is_late else str(error))
            if self._costs is not None and self.limit.left_s() <= 0:
                # It takes at least this long: without learning that, every request would wait for it until it is late.
                self._costs.observe("llm", self.n_tokens, 1000 * (time.perf_counter() - started))

    def fits(self, stage: str) -> bool:
        """Whether one unit of a stage is expected to be done before the deadline; where it is not, it costs less next
        time, so that it is tried again."""
        fits = self.limit.fits(stage, 1.0)
        if not fits and self._costs is not None:
            self._costs.decay(stage)
        return fits

    def learn(self, stage: str, began: float) -> None:
        """Take in that one unit of a stage took, or would have taken more than, the time since it began."""
        if self._costs is not None:
            self._costs.observe(stage, 1.0, 1000 * (time.perf_counter() - began))

    def admits_llm(self) -> bool:
        """Whether there are words, and time, to ask the LLM about; where time is lacking, the reason is noted."""
        if not self.inputs.text_mask.any():
            return False
        if reason := self.skip_reason("llm"):
            self._note_missing_llm(reason)
        return not reason

    def skip_reason(self, stage: str) -> str:
        """Why a stage is left out for the deadline; empty where there is time for it."""
        return "" if self.deadline is None or self.deadline.admits(stage) else self.deadline.reason

    def note_unread_recording(self, index: int) -> None:
        """Note that the tracks of an utterance were left out for the deadline."""
        for track in ("audio", "video"):
            self.note_missing_track(index, track, self.limit.reason)

    def note_missing_track(self, index: int, track: str, reason: str) -> None:
        """Note why a track (`audio`, `video`) is missing, for each modality that would be encoded from it."""
        for spec in MODALITY_SPECS:
            if spec.track == track and spec.name in self._modalities:
                self.missing[index][spec.name] = reason

    def finish(self) -> dict[str, float]:
        """Milliseconds per stage, and `total` since the start; time in which a stage ran twice at once counts once.

        Sets `late_ms`.
        """
        until: dict[str, float] = {}
        for stage, start, end in sorted(self._runs, key=lambda run: run[1]):
            new = max(0.0, end - max(start, until.get(stage, start)))
            self.timings_ms[stage] = self.timings_ms.get(stage, 0.0) + 1000 * new
            until[stage] = max(end, until.get(stage, end))
        self._runs.clear()
        self.late_ms = 0.0 if self.deadline is None else round(self.deadline.late_ms(), 3)
        self.timings_ms["total"] = 1000 * (time.perf_counter() - self._started)
        return {stage: round(value, 3) for stage, value in self.timings_ms.items()}

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known of any utterance, and not because of the deadline."""
        return not (self.is_known().any() or self.is_unread().any())

    def is_known(self) -> BoolArray:
        """bool (U,), the utterances of which something was encoded."""
        return self.inputs.text_mask | self.inputs.has_nonverbal()

    def is_unread(self) -> BoolArray:
        """bool (U,), the utterances of which the deadline left nothing."""
        left_out = [any(reason == self.limit.reason for reason in reasons.values()) for reasons in self.missing]
        return np.asarray(~self.is_known() & np.array(left_out, bool))

    def _note_missing_llm(self, reason: str) -> None:
        for index in self.inputs.text_mask.nonzero()[0]:
            self.missing[index]["llm"] = reason
