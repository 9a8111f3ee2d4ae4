"""Verifies converted weights: the largest difference from their source, and its limit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mechm_runtime.errors import VerificationError


@dataclass(frozen=True, slots=True)
class Check:
    """Result of comparing converted weights with their source.

    against: description of the reference.
    largest_difference: largest absolute difference over all compared values; 0 means bit for bit equal.
    atol: the limit, which was not exceeded.
    """

    against: str
    largest_difference: float
    atol: float


def largest_difference(what: str, expected: NDArray[np.floating], actual: NDArray[np.floating]) -> float:
    """Compute the largest absolute difference of two arrays.

    Raises: VerificationError: their shapes differ, or a difference is not finite.
    """
    if expected.shape != actual.shape:
        raise VerificationError(f"{what}: shape {actual.shape} instead of {expected.shape}")
    if expected.size == 0:
        raise VerificationError(f"{what}: nothing to compare")
    difference = float(np.max(np.abs(expected.astype(np.float64) - actual.astype(np.float64))))
    if not np.isfinite(difference):
        raise VerificationError(f"{what}: values that are not finite")
    return difference


def require_close(what: str, against: str, difference: float, atol: float) -> Check:
    """Return a `Check` of a conversion whose difference is within its limit.

    Raises: VerificationError: it is not.
    """
    if not difference <= atol:
        raise VerificationError(
            f"{what} differs from {against} by {difference:.2e}, more than {atol:.0e}",
            hint="the weights were not kept; report this together with the versions that `mechm doctor` prints",
        )
    return Check(against, difference, atol)
