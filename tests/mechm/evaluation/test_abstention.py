"""Risk, coverage and abstention against counting by hand and against their laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechm.evaluation.abstention import COVERAGES, MAX_POINTS, abstain, score_abstention, score_risk_coverage
from mechm_runtime.bundle.config import DecisionConfig
from mechm_runtime.fusion.decision import Decision, decide
from mechm_runtime.types import (
    EMOTIONS,
    Analysis,
    Conversation,
    GoldPair,
    LabelledConversation,
    Pair,
    Utterance,
    UtteranceAnalysis,
)

ANSWERS = st.lists(
    st.tuples(st.sampled_from([0.2, 0.3, 0.5, 0.55, 0.9]) | st.floats(0, 1), st.booleans()), min_size=1, max_size=40
)


def as_analysis(decision: Decision, name: str = "1") -> Analysis:
    """A decision as the pipeline hands it out."""
    labels = [None if label < 0 else EMOTIONS[label] for label in decision.labels]
    utterances = tuple(
        UtteranceAnalysis(i + 1, "", "hm", None, None, labels[i], dict(zip(EMOTIONS, row, strict=True)), ("text",))
        for i, row in enumerate(decision.probabilities.tolist())
    )
    pairs = tuple(Pair(i + 1, str(labels[i]), j + 1, p) for i, j, p in decision.pairs)
    return Analysis(name, utterances, pairs, {}, "rule")


def test_risk_counted_by_hand() -> None:
    scores = score_risk_coverage([0.9, 0.8, 0.7, 0.6], [True, False, True, False], 4)
    risks = [0, 1 / 2, 1 / 3, 1 / 2]
    assert [point.risk for point in scores.curve] == pytest.approx(risks)
    assert [point.coverage for point in scores.curve] == [0.25, 0.5, 0.75, 1]
    assert [point.threshold for point in scores.curve] == [0.9, 0.8, 0.7, 0.6]
    assert scores.aurc == pytest.approx(sum(risks) / 4)
    assert scores.accuracy_at == pytest.approx({"0.5": 1 / 2, "0.8": 1 / 2, "0.9": 1 / 2})


def test_equally_sure_answers_share_their_errors() -> None:
    scores = score_risk_coverage([0.9, 0.5, 0.5], [True, False, True], 3)
    # The second answer is as likely the wrong one as the right one.
    assert scores.aurc == pytest.approx((0 + 0.5 / 2 + 1 / 3) / 3)
    assert [(point.threshold, point.risk) for point in scores.curve] == [(0.9, 0), (0.5, pytest.approx(1 / 3))]


def test_what_the_system_does_not_answer_is_not_covered() -> None:
    scores = score_risk_coverage([0.9, 0.8], [True, True], 4)
    assert scores.accuracy_at == {"0.5": 1.0, "0.8": None, "0.9": None}
    assert [point.coverage for point in scores.curve] == [0.25, 0.5]
    silent = score_risk_coverage([], [], 3)
    assert (silent.aurc, silent.curve, set(silent.accuracy_at.values())) == (0.0, (), {None})


@settings(deadline=None)
@given(ANSWERS, st.randoms())
def test_laws_of_risk_and_coverage(answers: list[tuple[float, bool]], random: object) -> None:
    confidence, right = [c for c, _ in answers], [r for _, r in answers]
    scores = score_risk_coverage(confidence, right, len(answers))
    coverages = [point.coverage for point in scores.curve]
    assert coverages == sorted(set(coverages))
    assert coverages[-1] == 1
    assert scores.curve[-1].risk == pytest.approx(1 - sum(right) / len(right))
    assert 0 <= scores.aurc <= 1
    for point in scores.curve:
        kept = [r for c, r in answers if c >= point.threshold]
        assert point.coverage == pytest.approx(len(kept) / len(answers))
        assert point.risk == pytest.approx(1 - sum(kept) / len(kept))
    random.shuffle(answers)  # type: ignore[attr-defined]
    again = score_risk_coverage([c for c, _ in answers], [r for _, r in answers], len(answers))
    assert again.aurc == pytest.approx(scores.aurc)
    assert again.accuracy_at == pytest.approx(scores.accuracy_at)
    assert score_risk_coverage(confidence, [True] * len(right), len(right)).aurc == 0
    # Nobody ranks better than who is surest of what is right, nor worse than who is surest of what is wrong.
    best = score_risk_coverage([float(r) for r in right], right, len(right)).aurc
    worst = score_risk_coverage([float(not r) for r in right], right, len(right)).aurc
    assert best - 1e-12 <= scores.aurc <= worst + 1e-12


def test_a_long_curve_is_thinned_out_and_its_area_is_not() -> None:
    random = np.random.default_rng(0)
    confidence, right = random.random(3000), random.random(3000) < 0.6
    scores = score_risk_coverage(confidence, right, 3000)
    assert len(scores.curve) == MAX_POINTS
    assert scores.curve[-1].coverage == 1
    wrong = ~right[np.argsort(-confidence)]
    assert scores.aurc == pytest.approx(float((np.cumsum(wrong) / np.arange(1, 3001)).mean()))
    for coverage in COVERAGES:
        assert scores.accuracy_at[str(coverage)] == pytest.approx(1 - wrong[: int(coverage * 3000)].mean())


@settings(deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1), st.floats(-1, 1))
def test_abstaining_afterwards_is_what_a_bundle_does_that_abstains(seed: int, below: float, bias: float) -> None:
    random = np.random.default_rng(seed)
    emotions, pairs = random.normal(0, 2, (5, 7)), random.normal(0, 2, (5, 5))
    plain = DecisionConfig(neutral_log_bias=bias)
    silent = DecisionConfig(neutral_log_bias=bias, abstain_below=below)
    later = abstain(as_analysis(decide(emotions, pairs, plain)), below)
    assert later == as_analysis(decide(emotions, pairs, silent))
    assert abstain(later, 0.0) == later


def test_what_is_left_counted_by_hand() -> None:
    def utterance(number: int, emotion: str, probability: float) -> UtteranceAnalysis:
        return UtteranceAnalysis(number, "", "hm", None, None, emotion, {emotion: probability}, ("text",))

    turns = tuple(Utterance(number, text="hm") for number in (1, 2, 3, 4))
    annotated = frozenset({GoldPair(1, "joy", 2), GoldPair(2, "joy", 2), GoldPair(3, "anger", 3)})
    gold = [
        LabelledConversation(Conversation("1", turns), ("joy", "joy", "anger", "neutral"), annotated),
        LabelledConversation(Conversation("2", turns[:1]), ("joy",), frozenset()),
    ]
    utterances = (
        utterance(1, "joy", 0.9),
        utterance(2, "joy", 0.4),
        utterance(3, "joy", 0.8),
        utterance(4, "fear", 0.3),
    )
    found = (Pair(1, "joy", 2, 0.5), Pair(2, "joy", 2, 0.3), Pair(3, "joy", 3, 0.5))
    analyses = [
        Analysis("1", utterances, found, {}, "rule"),
        Analysis("2", (utterance(1, "joy", 0.2),), (), {}, "rule"),
    ]
    scores = score_abstention(gold, analyses, 0.5)
    assert (scores.n_answered, scores.coverage) == (2, 2 / 5)
    assert scores.accuracy == 1 / 2
    assert scores.emotion_weighted_f1 == pytest.approx((1 * 2 / 3 + 1 * 0) / 2)
    # Joy: 2 annotated, 2 found (one with a wrong emotion), 1 right. Anger: 1 annotated, none found.
    assert scores.weighted_f1 == pytest.approx((2 * (2 * 1 / 4) + 0) / 3)
    # Of the answered: joy 1 annotated, 2 found, 1 right; anger as before.
    assert scores.weighted_f1_answered == pytest.approx((2 * 1 / 3 + 0) / 2)
    everything = score_abstention(gold, analyses, 0.0)
    assert (everything.coverage, everything.accuracy) == (1, 3 / 5)
    assert everything.weighted_f1 == everything.weighted_f1_answered
    nothing = score_abstention(gold, analyses, 1.0)
    assert (nothing.coverage, nothing.n_answered, nothing.accuracy, nothing.weighted_f1) == (0, 0, 0, 0)
    assert not math.isnan(nothing.weighted_f1_answered)
