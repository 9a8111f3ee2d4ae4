"""The combination of fusion and Llama: what it weighs, what it falls back to, and that it helps where they differ."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mechm.training.calibration import ScoredConversation, fit_decision
from mechm.training.combination import (
    choose_asked_below,
    choose_shares,
    combined,
    cross_validated_f1,
    fit_combination,
    with_early_exit,
)
from mechm.training.fusion import decision_scores
from mechm_runtime.bundle.config import CombinationConfig, DecisionConfig
from mechm_runtime.fusion.combination import combine
from mechm_runtime.fusion.decision import decide, emotion_probabilities


def _scored(random: np.random.Generator, truth: list[ScoredConversation] | None, noise: float) -> list[
    ScoredConversation
]:  # fmt: skip
    """Conversations scored by a model that sees the truth through noise; the truth is drawn where none is given."""
    scored = []
    for index in range(60):
        if truth is None:
            emotions = random.integers(0, 7, 8)
            causes = (random.random((8, 8)) < 0.3) & (emotions != 0)[:, None]
        else:
            emotions, causes = truth[index].emotions, truth[index].causes
        emotion_logits = 2 * np.eye(7)[emotions] + noise * random.normal(size=(8, 7))
        pair_logits = 2 * (2 * causes - 1) + 2 * noise * random.normal(size=(8, 8))
        scored.append(
            ScoredConversation(emotion_logits.astype(np.float32), pair_logits.astype(np.float32), emotions, causes)
        )
    return scored


def test_two_that_err_in_different_places_are_better_together() -> None:
    random = np.random.default_rng(0)
    fusion = _scored(random, None, 1.2)
    llama = _scored(random, fusion, 0.9)
    config = fit_combination(fusion, llama)
    assert config.emotion_llama > config.emotion_fusion > 0, "who errs less counts more"
    assert config.pair_llama > config.pair_fusion > 0
    both = combined(fusion, llama, config)
    alone = [decision_scores(scored, fit_decision(scored)) for scored in (fusion, llama)]
    together = decision_scores(both, fit_decision(both))
    assert together[0] > max(f1 for f1, _ in alone) + 0.02
    assert together[1] > max(accuracy for _, accuracy in alone) + 0.02


def test_a_pair_that_the_llama_was_not_asked_is_the_fusions() -> None:
    random = np.random.default_rng(1)
    fusion, llama = (
        (random.normal(size=(4, 7)).astype(np.float32), random.normal(size=(4, 4)).astype(np.float32)) for _ in "ab"
    )
    llama[1][0, 3] = -np.inf
    fusion[1][1, 2] = -np.inf
    config = CombinationConfig(pair_bias=3.0, pair_alone=2.0, pair_bias_alone=-1.0)
    emotions, pairs = combine(fusion, llama, config)
    assert pairs[0, 3] == pytest.approx(2 * fusion[1][0, 3] - 1)
    assert pairs[1, 2] == -np.inf, "nobody scored it"
    assert pairs[2, 1] == pytest.approx(0.5 * fusion[1][2, 1] + 0.5 * llama[1][2, 1] + 3)
    shifted = combine((fusion[0] + 5, fusion[1]), llama, config)[0]
    assert np.allclose(emotions, shifted, atol=1e-5), "a model's scale of logits does not matter"


def test_scores_that_do_not_belong_together_are_refused() -> None:
    random = np.random.default_rng(2)
    one = (np.zeros((4, 7), np.float32), np.zeros((4, 4), np.float32))
    with pytest.raises(ValueError, match="of the Llama"):
        combine(one, (one[0][:3], one[1]), CombinationConfig())
    with pytest.raises(ValueError, match="not a number"):
        combine(one, (one[0], np.full((4, 4), np.nan, np.float32)), CombinationConfig())
    with pytest.raises(ValueError, match="not finite"):
        CombinationConfig(pair_bias=float("inf"))
    fusion = _scored(random, None, 1.0)
    with pytest.raises(ValueError, match="different conversations"):
        fit_combination(fusion, fusion[::-1])


def test_shares_are_chosen_for_the_metric() -> None:
    random = np.random.default_rng(4)
    fusion = _scored(random, None, 2.0)
    llama = _scored(random, fusion, 0.6)
    worst = CombinationConfig(emotion_fusion=0.9, emotion_llama=0.1, pair_fusion=0.9, pair_llama=0.1)
    chosen = choose_shares(fusion, llama, worst)
    assert chosen.emotion_llama > chosen.emotion_fusion
    assert chosen.emotion_fusion + chosen.emotion_llama == pytest.approx(1.0)
    assert chosen.pair_fusion + chosen.pair_llama == pytest.approx(1.0)
    reached, before = (cross_validated_f1(combined(fusion, llama, config)) for config in (chosen, worst))
    assert reached > before


def test_what_f1_does_not_tell_apart_stays_as_likely_as_it_was() -> None:
    fusion = _scored(np.random.default_rng(7), None, 0.8)
    likeliest = CombinationConfig(emotion_fusion=0.6, emotion_llama=0.4, pair_fusion=0.3, pair_llama=0.7)
    assert choose_shares(fusion, fusion, likeliest) == likeliest  # of the same scores every share is as good


def test_cross_validation_looks_at_no_fold_it_was_fitted_on() -> None:
    # Scores that say nothing: what is fitted to them on other conversations finds nothing but chance here.
    random = np.random.default_rng(5)
    noise = _scored(random, _scored(random, None, 0.1), 50.0)
    fitted = decision_scores(noise, fit_decision(noise))[0]
    assert cross_validated_f1(noise) <= fitted + 1e-9


def test_what_a_sure_fusion_knows_anyway_is_not_asked() -> None:
    random = np.random.default_rng(5)
    fusion = _scored(random, None, 0.9)
    llama = _scored(random, fusion, 4.0)  # knows next to nothing
    both = combined(fusion, llama, fit_combination(fusion, llama))
    own, decision = fit_decision(fusion), fit_decision(both)
    asked_below = choose_asked_below(fusion, both, own, decision)
    assert asked_below < 0.95
    left = [with_early_exit(one, other, own, decision, asked_below) for one, other in zip(fusion, both, strict=True)]
    always, sometimes = (decision_scores(scored, decision) for scored in (both, left))
    assert min(np.subtract(sometimes, always)) >= -0.003


def test_a_fusion_that_is_sure_and_wrong_is_always_corrected() -> None:
    random = np.random.default_rng(6)
    truth = _scored(random, None, 0.1)
    wrong = [replace(one, emotion_logits=8 * np.roll(one.emotion_logits, 1, -1)) for one in truth]
    assert choose_asked_below(wrong, truth, DecisionConfig(), fit_decision(truth)) == 1.0


def test_where_nothing_is_asked_the_fusions_own_probabilities_hold() -> None:
    random = np.random.default_rng(7)
    fusion, both = _scored(random, None, 1.0)[0], _scored(random, None, 1.0)[0]
    own = DecisionConfig(
        emotion_temperature=1.7, emotion_bias=(0.3, 0, 0, 0.1, 0, 0, -0.2), pair_scale=0.6, pair_bias=-1
    )
    decision = DecisionConfig(emotion_temperature=0.8, pair_scale=1.3, pair_bias=0.4, pair_threshold=0.01)
    expected = emotion_probabilities(fusion.emotion_logits, own)
    bound = float(np.median(expected.max(-1)))
    left = with_early_exit(fusion, both, own, decision, bound)
    found = decide(left.emotion_logits, left.pair_logits, decision)
    sure = expected.max(-1) >= bound
    assert 0 < sure.sum() < len(sure)
    assert np.allclose(found.probabilities[sure], expected[sure], atol=1e-6)
    assert np.array_equal(left.emotion_logits[~sure], both.emotion_logits[~sure])
    joint = {(i, j): probability for i, j, probability in found.pairs}
    at_own = decide(fusion.emotion_logits, fusion.pair_logits, replace(own, pair_threshold=0.01))
    assert all(joint[i, j] == pytest.approx(p, abs=1e-6) for i, j, p in at_own.pairs if sure[i])
    assert with_early_exit(fusion, both, own, decision, 1.0) is both
