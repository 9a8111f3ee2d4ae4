"""Latency percentiles of repeated measurements, with the measurements themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Latency:
    """Wall-clock milliseconds of repeated queries.

    p99_ms: of `n` queries; close to the slowest if there are fewer than a hundred.
    samples_ms: every measurement, in order.
    """

    n: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    samples_ms: tuple[float, ...]

    @classmethod
    def of(cls, samples_ms: Sequence[float]) -> Latency:
        """Compute the percentiles of at least one measurement."""
        p50, p90, p99 = (round(float(value), 3) for value in np.percentile(samples_ms, [50, 90, 99]))
        return cls(len(samples_ms), p50, p90, p99, tuple(round(value, 3) for value in samples_ms))
