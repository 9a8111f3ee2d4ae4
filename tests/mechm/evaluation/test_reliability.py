"""Calibration error against counting by hand, its laws, and the error that cards of trained weights carry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechm.evaluation.reliability import N_BINS, score_reliability
from mechm.training.calibration import ScoredConversation, expected_calibration_error
from mechm_runtime.bundle.config import DecisionConfig
from mechm_runtime.fusion.decision import emotion_probabilities

GIVEN = st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=60)


def test_counted_by_hand() -> None:
    scores = score_reliability([0.95, 1.0, 0.94, 0.41], [True, True, False, True])
    # The last bin, from 14/15 on, holds three; 0.41 has one of its own.
    assert [(one.n, one.share_right) for one in scores.bins] == [(1, 1.0), (3, pytest.approx(2 / 3))]
    assert scores.bins[1].mean_probability == pytest.approx((0.95 + 1.0 + 0.94) / 3)
    assert (scores.bins[0].low, scores.bins[0].high) == (6 / 15, 7 / 15)
    assert scores.ece == pytest.approx((1 * 0.59 + 3 * abs(2.89 / 3 - 2 / 3)) / 4)
    assert scores.n == 4


@settings(deadline=None)
@given(GIVEN)
def test_laws(given_: list[tuple[float, bool]]) -> None:
    probabilities, right = [p for p, _ in given_], [r for _, r in given_]
    scores = score_reliability(probabilities, right)
    assert 0 <= scores.ece <= 1
    assert sum(one.n for one in scores.bins) == scores.n == len(given_)
    assert len(scores.bins) <= N_BINS
    assert sum(one.n * one.share_right for one in scores.bins) == pytest.approx(sum(right))
    assert all(one.low - 1e-9 <= one.mean_probability <= one.high + 1e-9 for one in scores.bins)
    assert score_reliability([float(r) for r in right], right).ece == 0, "sure and right"
    assert score_reliability([float(not r) for r in right], right).ece == (1 if given_ else 0), "sure and wrong"


def test_it_is_the_error_of_the_cards() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (500, 7)).astype(np.float32)
    emotions = random.integers(0, 7, 500)
    probabilities = emotion_probabilities(logits, DecisionConfig())
    scored = ScoredConversation(logits, np.zeros((500, 500), np.float32), emotions, np.zeros((500, 500), bool))
    scores = score_reliability(probabilities.max(-1), probabilities.argmax(-1) == emotions)
    assert scores.ece == pytest.approx(expected_calibration_error([scored], DecisionConfig()))
