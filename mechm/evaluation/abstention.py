"""Selective classification: risk against coverage, and scores when a system abstains below a probability.

Utterances are ranked by the probability of their likeliest emotion, the one that a bundle's `abstain_below` compares;
the decided label is right or wrong. Selective classification: El-Yaniv and Wiener 2010; the area under the
curve (AURC): Geifman et al. 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mechm.evaluation.scorer import score_emotions, score_pairs
from mechm_runtime.output.formatting import strongest
from mechm_runtime.types import Analysis, LabelledConversation

COVERAGES = (0.5, 0.8, 0.9)
"""The coverages at which the accuracy is reported."""

MAX_POINTS = 200
"""Points of a curve in a report; the area is computed from all of them."""


@dataclass(frozen=True, slots=True)
class RiskPoint:
    """One point of the curve: with answers of at least `threshold`, the share answered and the share of these wrong."""

    threshold: float
    coverage: float
    risk: float


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """Risk against coverage.

    aurc: mean risk over the coverages 1/n, 2/n, ...; 0 is perfect, uninformative probabilities reach the error rate.
    accuracy_at: coverage ("0.5") -> accuracy there, None if the system itself answers less.
    curve: points of rising coverage, one per probability that occurs; thinned out to `MAX_POINTS`.
    """

    aurc: float
    accuracy_at: Mapping[str, float | None]
    curve: tuple[RiskPoint, ...]


@dataclass(frozen=True, slots=True)
class AbstentionScores:
    """Scores when utterances whose likeliest emotion is below a probability get no label and no pairs.

    coverage: share of answered utterances. accuracy, emotion_weighted_f1: of their emotions.
    weighted_f1: the task's score, in which a pair of an unanswered utterance counts as missed.
    weighted_f1_answered: the same over the pairs of answered utterances only.
    """

    abstain_below: float
    coverage: float
    n_answered: int
    accuracy: float
    emotion_weighted_f1: float
    weighted_f1: float
    weighted_f1_answered: float


def score_risk_coverage(
    confidence: Sequence[float] | npt.NDArray[np.floating],
    right: Sequence[bool] | npt.NDArray[np.bool_],
    n_utterances: int,
) -> RiskCoverage:
    """Rank answers by confidence. Equally confident ones share their errors evenly, so their order does not matter.

    confidence: float (N,), of the given answers. right: bool (N,). n_utterances: that were asked about, at least N.
    """
    values, group, sizes = np.unique(-np.asarray(confidence, np.float64), return_inverse=True, return_counts=True)
    errors = np.bincount(group, ~np.asarray(right, np.bool_), minlength=len(values))
    n_answered = np.arange(1, len(group) + 1)
    risks = np.cumsum(np.repeat(errors / np.maximum(sizes, 1), sizes)) / n_answered
    ends = np.cumsum(sizes) - 1
    shown = np.unique(np.linspace(0, len(ends) - 1, min(len(ends), MAX_POINTS)).round().astype(int))
    accuracy_at: dict[str, float | None] = {}
    for coverage in COVERAGES:
        n_wanted = int(np.ceil(round(coverage * n_utterances, 9)))
        accuracy_at[str(coverage)] = float(1 - risks[n_wanted - 1]) if 0 < n_wanted <= len(risks) else None
    return RiskCoverage(
        float(risks.mean()) if len(risks) else 0.0,
        accuracy_at,
        tuple(
            RiskPoint(float(-values[i]), float(n_answered[ends[i]] / n_utterances), float(risks[ends[i]]))
            for i in shown
        ),
    )


def abstain(analysis: Analysis, below: float) -> Analysis:
    """The analysis of a bundle with this `abstain_below`: no label and no pairs where the probability is lower."""
    unsure = {u.id for u in analysis.utterances if strongest(u)[1] < below}
    return replace(
        analysis,
        utterances=tuple(replace(u, emotion=None) if u.id in unsure else u for u in analysis.utterances),
        pairs=tuple(pair for pair in analysis.pairs if pair.emotion_utterance not in unsure),
    )


def score_abstention(
    gold: Sequence[LabelledConversation], analyses: Sequence[Analysis], below: float
) -> AbstentionScores:
    """Score abstention at a threshold; `analyses` are those of the gold conversations, in the same order."""
    left = [abstain(analysis, below) for analysis in analyses]
    pairs = {one.conversation_id: one.pairs for one in left}
    answered = [_answered(labelled, one) for labelled, one in zip(gold, left, strict=True)]
    emotions = {one.conversation_id: [u.emotion for u in one.utterances if u.emotion is not None] for one in left}
    of_answered = score_emotions([one for one in answered if one is not None], emotions)
    gold_pairs = {}
    for labelled, one in zip(gold, left, strict=True):
        ids = {u.id for u in one.utterances if u.emotion is not None}
        # A cause may lie in an utterance that is not answered.
        gold_pairs[one.conversation_id] = [pair for pair in labelled.pairs if pair.emotion_utterance in ids]
    return AbstentionScores(
        below,
        of_answered.n_utterances / max(sum(len(labelled.emotions) for labelled in gold), 1),
        of_answered.n_utterances,
        of_answered.accuracy,
        of_answered.weighted_f1,
        score_pairs(gold, pairs).weighted.f1,
        score_pairs(gold_pairs, pairs).weighted.f1,
    )


def _answered(labelled: LabelledConversation, analysis: Analysis) -> LabelledConversation | None:
    """The utterances that have a label, without pairs; None if no utterance has one."""
    kept = [u.emotion is not None for u in analysis.utterances]
    if not any(kept):
        return None
    conversation = labelled.conversation
    utterances = tuple(u for u, keep in zip(conversation.utterances, kept, strict=True) if keep)
    emotions = tuple(emotion for emotion, keep in zip(labelled.emotions, kept, strict=True) if keep)
    return LabelledConversation(replace(conversation, utterances=utterances), emotions, frozenset())
