"""Calibration makes over-confident scores honest, and decisions are best by the task's own scorer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mechm.evaluation.scorer import score_pairs
from mechm.training.calibration import (
    NEUTRAL_LOG_BIASES,
    PAIR_THRESHOLDS,
    ScoredConversation,
    cause_calibration_error,
    expected_calibration_error,
    fit_decision,
    fit_probabilities,
    pair_counts,
    weighted_f1,
)
from mechm.training.fusion import decision_scores
from mechm_runtime.bundle.config import DecisionConfig
from mechm_runtime.fusion.decision import cause_probabilities, decide, emotion_probabilities
from mechm_runtime.types import EMOTIONS, GoldPair


def over_confident(n_conversations: int, seed: int, sharpness: float = 2.5) -> list[ScoredConversation]:
    """Annotation drawn from true probabilities; the scores are these probabilities' logits, sharpened and shifted."""
    random = np.random.default_rng(seed)
    scored = []
    for _ in range(n_conversations):
        n = int(random.integers(3, 12))
        truth = random.dirichlet([2.0, *[0.6] * (len(EMOTIONS) - 1)], n)
        emotions = np.array([random.choice(len(EMOTIONS), p=row) for row in truth])
        distance = np.subtract.outer(np.arange(n), np.arange(n))
        likely = 0.6 * np.exp(-np.abs(distance)) * random.uniform(0.2, 1.5, (n, n))
        causes = (random.random((n, n)) < likely) & (emotions != 0)[:, None]
        shift = np.array([-1.0, 0.5, 0, 0, 0, 0, 0.8])
        emotion_logits = (sharpness * (np.log(truth + 1e-3) + shift)).astype(np.float32)
        pair_logits = (sharpness * np.log(likely / (1 - likely)) + 3).astype(np.float32)
        scored.append(ScoredConversation(emotion_logits, pair_logits, emotions.astype(np.int64), causes))
    return scored


def emotion_loss(scored: list[ScoredConversation], config: DecisionConfig) -> float:
    rows = [emotion_probabilities(s.emotion_logits, config)[np.arange(len(s.emotions)), s.emotions] for s in scored]
    return float(-np.log(np.concatenate(rows)).mean())


def cause_loss(scored: list[ScoredConversation], config: DecisionConfig) -> float:
    losses = []
    for s in scored:
        emotional = s.emotions != 0
        p, causes = cause_probabilities(s.pair_logits[emotional], config), s.causes[emotional]
        losses.append(-np.log(np.where(causes, p, 1 - p)).ravel())
    return float(np.concatenate(losses).mean())


def test_calibration_makes_unseen_scores_honest() -> None:
    seen, unseen = over_confident(800, 0), over_confident(800, 1)
    plain, fitted = DecisionConfig(), fit_probabilities(seen)
    assert fitted.emotion_temperature == pytest.approx(2.5, rel=0.15)
    assert fitted.pair_scale == pytest.approx(1 / 2.5, rel=0.2)
    assert emotion_loss(unseen, fitted) < 0.8 * emotion_loss(unseen, plain)
    assert cause_loss(unseen, fitted) < 0.8 * cause_loss(unseen, plain)
    assert expected_calibration_error(unseen, plain) > 0.1
    assert expected_calibration_error(unseen, fitted) < 0.04
    assert cause_calibration_error(unseen, plain) > 0.08
    assert cause_calibration_error(unseen, fitted) < 0.02


def test_calibration_leaves_honest_scores_alone() -> None:
    random = np.random.default_rng(4)
    truth = random.dirichlet([1.0] * len(EMOTIONS), 4000)
    emotions = np.array([random.choice(len(EMOTIONS), p=row) for row in truth])
    nothing = np.zeros((4000, 4000), bool)
    scored = [
        ScoredConversation(
            np.log(truth[i : i + 10] + 1e-9).astype(np.float32),
            np.full((10, 10), -2.0, np.float32),
            emotions[i : i + 10],
            nothing[i : i + 10, :10],
        )
        for i in range(0, 4000, 10)
    ]
    fitted = fit_probabilities(scored)
    assert fitted.emotion_temperature == pytest.approx(1.0, abs=0.06)
    assert np.abs(fitted.emotion_bias).max() < 0.12


def pairs_of(scored: list[ScoredConversation], config: DecisionConfig) -> dict[str, list[GoldPair]]:
    found: dict[str, list[GoldPair]] = {}
    for number, s in enumerate(scored):
        decision = decide(s.emotion_logits, s.pair_logits, config)
        found[str(number)] = [GoldPair(i + 1, EMOTIONS[decision.labels[i]], j + 1) for i, j, _ in decision.pairs]
    return found


def gold_of(scored: list[ScoredConversation]) -> dict[str, list[GoldPair]]:
    return {
        str(number): [
            GoldPair(int(i) + 1, EMOTIONS[s.emotions[i]], int(j) + 1) for i, j in zip(*s.causes.nonzero(), strict=True)
        ]
        for number, s in enumerate(scored)
    }


def test_scores_equal_the_tasks_scorer() -> None:
    scored = over_confident(40, 2)
    for config in (
        DecisionConfig(pair_threshold=0.02),
        DecisionConfig(emotion_temperature=2.0, pair_scale=0.4, neutral_log_bias=-0.7, pair_threshold=0.21),
        DecisionConfig(emotion_temperature=3.0, abstain_below=0.5, pair_threshold=0.1),
    ):
        official = score_pairs(gold_of(scored), pairs_of(scored, config))
        f1, _ = decision_scores(scored, config)
        assert official.n_correct > 0
        assert f1 == pytest.approx(official.weighted.f1, abs=1e-12)
        ((hits, predicted, gold),) = pair_counts(scored, config, (config.pair_threshold,)).sum(1)
        assert (hits, predicted, gold) == (official.n_correct, official.n_predicted, official.n_gold)


def test_the_fitted_decision_is_the_best_of_the_grid() -> None:
    scored = over_confident(30, 3)
    fitted = fit_decision(scored)
    best = score_pairs(gold_of(scored), pairs_of(scored, fitted)).weighted.f1
    assert best == pytest.approx(decision_scores(scored, fitted)[0], abs=1e-12)
    assert fitted.neutral_log_bias in NEUTRAL_LOG_BIASES
    assert fitted.pair_threshold in PAIR_THRESHOLDS
    for neutral_log_bias in NEUTRAL_LOG_BIASES[::5]:
        for threshold in PAIR_THRESHOLDS[::4]:
            other = fitted.with_threshold(neutral_log_bias=neutral_log_bias, pair_threshold=threshold)
            assert score_pairs(gold_of(scored), pairs_of(scored, other)).weighted.f1 <= best + 1e-12


def test_many_thresholds_at_once_equal_one_by_one() -> None:
    scored = over_confident(10, 5)
    config = DecisionConfig(emotion_temperature=2.0, pair_scale=0.5)
    together = pair_counts(scored, config)
    for row, threshold in enumerate(PAIR_THRESHOLDS):
        assert np.array_equal(together[row], pair_counts(scored, config, (threshold,))[0])
    assert (np.diff(together[:, :, 1], axis=0) <= 0).all()


def test_accuracy_counts_an_abstention_as_wrong() -> None:
    scored = over_confident(10, 6)
    _, accuracy = decision_scores(scored, DecisionConfig())
    assert accuracy == pytest.approx(
        np.mean(np.concatenate([s.emotion_logits.argmax(-1) == s.emotions for s in scored]))
    )
    assert decision_scores(scored, DecisionConfig(abstain_below=1.1))[1] == 0


@pytest.mark.parametrize("margin", [0.01, 0.5, 20.0])
def test_scores_without_a_mistake_give_finite_constants(margin: float) -> None:
    scored = []
    for s in over_confident(6, 7):
        emotion_logits = np.full_like(s.emotion_logits, -margin)
        emotion_logits[np.arange(len(s.emotions)), s.emotions] = margin
        scored.append(replace(s, emotion_logits=emotion_logits, pair_logits=np.where(s.causes, margin, -margin)))
    fitted = fit_decision(scored)
    assert decision_scores(scored, fitted) == (1.0, 1.0)
    assert fitted.emotion_temperature > margin / 30
    assert abs(fitted.neutral_log_bias) < 0.2  # of equally good ones, the least


def test_without_pairs_the_decision_keeps_its_defaults() -> None:
    scored = [
        replace(s, emotions=np.zeros_like(s.emotions), causes=np.zeros_like(s.causes)) for s in over_confident(5, 8)
    ]
    fitted = fit_decision(scored)
    assert (fitted.neutral_log_bias, fitted.pair_threshold) == (0.0, DecisionConfig().pair_threshold)
    assert weighted_f1(pair_counts(scored, fitted)).tolist() == [0.0] * len(PAIR_THRESHOLDS)
