"""What is known of utterances on their way from words and recordings to an answer.

It holds; it neither reads (`senses`) nor decides (`decision`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from mechm_runtime.bundle import FusionWindows
from mechm_runtime.errors import LlmUnavailableError
from mechm_runtime.fusion import FusionInputs, FusionScores
from mechm_runtime.types import Utterance


@dataclass(slots=True)
class Work:
    """What is known so far, why things are missing, and where time went.

    inputs: what the encoders found. missing: modality -> why it is missing, an utterance at a time.
    scores: the fusion's, then with the Llama's weighed in. is_advised: whether they are.
    timings_ms: stage -> milliseconds.
    """

    inputs: FusionInputs
    missing: list[dict[str, str]]
    scores: FusionScores = field(init=False)
    is_advised: bool = False
    timings_ms: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def on(cls, utterances: Sequence[Utterance], sizes: FusionWindows) -> Work:
        """Nothing known yet."""
        return cls(FusionInputs.absent(utterances, sizes), [{} for _ in utterances])

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds what happens inside to a stage's time."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings_ms[stage] = self.timings_ms.get(stage, 0.0) + 1000 * (time.perf_counter() - start)

    @contextmanager
    def advised(self) -> Iterator[None]:
        """Around the Llama's turn: where it does not answer, the scores stay the fusion's, and the result says why."""
        try:
            with self.timed("llm"):
                yield
            self.is_advised = True
        except LlmUnavailableError as error:
            for index in self.inputs.text_mask.nonzero()[0]:
                self.missing[index]["llm"] = str(error)

    def finish(self) -> dict[str, float]:
        """Milliseconds a stage, with the total since the start."""
        self.timings_ms["total"] = 1000 * (time.perf_counter() - self.started)
        return {stage: round(value, 3) for stage, value in self.timings_ms.items()}

    @property
    def has_evidence(self) -> bool:
        """Whether anything is known of any utterance."""
        return bool(np.any(self.inputs.text_mask) or self.inputs.evident().any())
