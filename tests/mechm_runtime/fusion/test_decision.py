"""Decisions: probabilities are such, pairs belong to emotional utterances, what was not scored is not found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mechm_runtime.bundle.config import DecisionConfig
from mechm_runtime.fusion.decision import cause_probabilities, decide, emotion_logits_of, emotion_probabilities
from mechm_runtime.types import EMOTIONS

SEVEN = len(EMOTIONS)
FINITE = st.floats(-1e4, 1e4, width=32)
LOGITS = st.integers(1, 9).flatmap(lambda n: arrays(np.float32, (n, SEVEN), elements=FINITE))
CONFIGS = st.builds(
    DecisionConfig,
    emotion_temperature=st.floats(0.01, 100),
    emotion_bias=st.tuples(*[st.floats(-5, 5)] * SEVEN),
    pair_scale=st.floats(-3, 3),
    pair_bias=st.floats(-5, 5),
    neutral_log_bias=st.floats(-2, 2),
    pair_threshold=st.floats(0.01, 1),
    abstain_below=st.floats(0, 1),
)


@given(LOGITS, CONFIGS)
def test_probabilities_sum_to_one_and_ignore_a_common_shift(logits: np.ndarray, config: DecisionConfig) -> None:
    probabilities = emotion_probabilities(logits, config)
    assert probabilities.dtype == np.float64
    assert (probabilities >= 0).all()
    assert np.allclose(probabilities.sum(-1), 1)
    shifted = emotion_probabilities(logits.astype(np.float64) + 3, config)
    assert np.allclose(probabilities, shifted, atol=1e-9)


@given(LOGITS, CONFIGS, st.data())
def test_pairs_belong_to_labels_and_respect_the_threshold(
    logits: np.ndarray, config: DecisionConfig, data: st.DataObject
) -> None:
    n = len(logits)
    pair_logits = data.draw(arrays(np.float32, (n, n), elements=FINITE))
    decision = decide(logits, pair_logits, config)
    joint = decision.probabilities[:, :, None] * cause_probabilities(pair_logits, config)[:, None]
    for i, j, probability in decision.pairs:
        assert decision.labels[i] > 0
        assert config.pair_threshold <= probability <= 1
        assert probability == joint[i, decision.labels[i], j]
    found = {(i, j) for i, j, _ in decision.pairs}
    assert len(found) == len(decision.pairs)
    assert [(i, j) for i, j, _ in decision.pairs] == sorted(found)
    for i in np.flatnonzero(decision.labels > 0):
        wanted = {(int(i), int(j)) for j in np.flatnonzero(joint[i, decision.labels[i]] >= config.pair_threshold)}
        assert wanted <= found
    certain = decision.probabilities.max(-1) >= config.abstain_below
    assert ((decision.labels >= 0) == certain).all()


def test_labels_are_the_likeliest_and_neutral_can_be_handicapped() -> None:
    logits = np.zeros((2, SEVEN), np.float32)
    logits[0, 0], logits[0, 4] = 2.0, 1.5
    logits[1, 6] = 1.0
    nothing = np.full((2, 2), -np.inf, np.float32)
    assert decide(logits, nothing, DecisionConfig()).labels.tolist() == [0, 6]
    handicapped = decide(logits, nothing, DecisionConfig(neutral_log_bias=-0.6))
    assert handicapped.labels.tolist() == [4, 6]
    # The decision changes, the probabilities do not.
    has_text = np.array([False, True])
    assert decide(logits, nothing, DecisionConfig(neutral_log_bias=-9.0), has_text=has_text).labels.tolist() == [0, 6]
    assert decide(logits, nothing, DecisionConfig(neutral_log_bias=9.0), has_text=has_text).labels.tolist() == [0, 0]
    assert np.array_equal(handicapped.probabilities, decide(logits, nothing, DecisionConfig()).probabilities)
    assert decide(logits, nothing, DecisionConfig(abstain_below=0.9)).labels.tolist() == [-1, -1]


@pytest.mark.parametrize("pair_scale", [1.0, 0.0, -1.0])
def test_a_pair_that_was_not_scored_is_not_found(pair_scale: float) -> None:
    logits = np.zeros((2, SEVEN), np.float32)
    logits[:, 3] = 9
    pair_logits = np.array([[0.0, -np.inf], [-np.inf, -np.inf]], np.float32)
    config = DecisionConfig(pair_scale=pair_scale, pair_threshold=1e-6)
    assert cause_probabilities(pair_logits, config).tolist() == [[0.5, 0.0], [0.0, 0.0]]
    assert [(i, j) for i, j, _ in decide(logits, pair_logits, config).pairs] == [(0, 0)]


def test_columns_count_from_the_first_cause() -> None:
    logits = np.zeros((4, SEVEN), np.float32)
    logits[:, 1] = 9
    pair_logits = np.full((4, 2), -9.0, np.float32)
    pair_logits[3, 1] = pair_logits[0, 0] = 9.0
    decision = decide(logits, pair_logits, DecisionConfig(), first_cause=np.array([0, 0, 1, 2]))
    assert [(i, j) for i, j, _ in decision.pairs] == [(0, 0), (3, 3)]


def test_a_pairs_probability_is_emotion_times_cause() -> None:
    logits = np.log(np.array([[0.1, 0.6, 0.06, 0.06, 0.06, 0.06, 0.06]]))
    decision = decide(logits, np.zeros((1, 1)), DecisionConfig(pair_scale=2.0, pair_bias=np.log(4)))
    ((i, j, probability),) = decision.pairs
    assert (i, j) == (0, 0)
    assert probability == pytest.approx(0.6 * 0.8)


def test_calibration_is_applied() -> None:
    logits = np.array([[2.0, 0, 0, 0, 0, 0, 4.0]])
    config = DecisionConfig(emotion_temperature=2.0, emotion_bias=(1.0, 0, 0, 0, 0, 0, 0))
    expected = np.exp([2.0, 0, 0, 0, 0, 0, 2.0])
    assert np.allclose(emotion_probabilities(logits, config)[0], expected / expected.sum())


@pytest.mark.parametrize(
    "wrong",
    [
        {"emotion_temperature": 0.0},
        {"emotion_temperature": -1.0},
        {"emotion_temperature": float("nan")},
        {"emotion_temperature": float("inf")},
        {"emotion_bias": (0.0,) * 6},
        {"emotion_bias": (float("nan"),) * SEVEN},
        {"pair_scale": float("inf")},
        {"pair_bias": float("nan")},
        {"neutral_log_bias": float("nan")},
        {"pair_threshold": 0.0},
        {"pair_threshold": 1.5},
        {"pair_threshold": float("nan")},
        {"abstain_below": float("nan")},
    ],
)
def test_constants_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"emotion_|pair_|constant"):
        DecisionConfig(**wrong)


def test_logits_of_probabilities_are_calibrated_back_to_them() -> None:
    config = DecisionConfig(emotion_temperature=1.7, emotion_bias=(0.3, -0.2, 0.0, 0.5, -0.1, 0.0, -0.5))
    probabilities = np.random.default_rng(0).dirichlet(np.ones(7), 20)
    again = emotion_probabilities(emotion_logits_of(probabilities, config), config)
    assert np.allclose(again, probabilities)
    certain = np.eye(7)[:2]
    assert np.allclose(emotion_probabilities(emotion_logits_of(certain, config), config), certain)
