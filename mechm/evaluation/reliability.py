"""Whether probabilities mean what they say: of what is given 0.8, eight in ten should be right.

Expected calibration error with equal-width bins (Naeini et al. 2015, Guo et al. 2017), as the cards of trained weights
carry it. Calibrating is `mechm.training.calibration`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

N_BINS = 15


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """What was said with a probability in [low, high): how much that is, its mean probability, its share of hits."""

    low: float
    high: float
    n: int
    mean_probability: float
    share_right: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """Calibration of a set of probabilities.

    ece: expected calibration error, the mean distance of probability and share of hits over the bins, weighted by what
        is in them. n: how many probabilities. bins: those that hold anything, in rising order.
    """

    ece: float
    n: int
    bins: tuple[ReliabilityBin, ...]


def score_reliability(
    probabilities: Sequence[float] | npt.NDArray[np.floating], right: Sequence[bool] | npt.NDArray[np.bool_]
) -> Reliability:
    """Hold probabilities against what happened.

    probabilities: float (N,), in [0, 1]. right: bool (N,), whether what was given that probability is so.
    """
    p, hits = np.asarray(probabilities, np.float64), np.asarray(right, np.bool_)
    index = np.minimum((p * N_BINS).astype(int), N_BINS - 1)
    bins = tuple(
        ReliabilityBin(b / N_BINS, (b + 1) / N_BINS, int(m.sum()), float(p[m].mean()), float(hits[m].mean()))
        for b in range(N_BINS)
        if (m := index == b).any()
    )
    ece = sum(one.n * abs(one.mean_probability - one.share_right) for one in bins) / max(len(p), 1)
    return Reliability(ece, len(p), bins)
