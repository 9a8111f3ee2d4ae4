"""Calibration of probabilities: of the answers given a probability of 0.8, eight in ten should be right.

Expected calibration error with equal-width bins (Naeini et al. 2015, Guo et al. 2017), as in the cards of trained
weights.
The calibration itself is fitted by `mechm.training.calibration`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

N_BINS = 15


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Answers with a probability in [low, high): their number, mean probability and share of right ones."""

    low: float
    high: float
    n: int
    mean_probability: float
    share_right: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """Calibration of a set of probabilities.

    ece: expected calibration error, the mean distance between probability and share of right answers over the bins,
        weighted by their size. n: number of probabilities. bins: the non-empty ones, in rising order.
    """

    ece: float
    n: int
    bins: tuple[ReliabilityBin, ...]


def score_reliability(
    probabilities: Sequence[float] | npt.NDArray[np.floating], right: Sequence[bool] | npt.NDArray[np.bool_]
) -> Reliability:
    """Compare probabilities with the outcome.

    probabilities: float (N,), in [0, 1]. right: bool (N,), whether the answer with that probability is right.
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
