"""The scores of SemEval-2024 Task 3 Subtask 2, and of emotion recognition per utterance.

`score_pairs` follows the organisers' scorer (NUSTM/SemEval-2024_ECAC, `CodaLab/evaluation/evaluate.py`): a predicted
pair is right if its emotion utterance, emotion and cause utterance are all annotated; duplicates count once; neutral
pairs count neither as found nor as missed; conversations without gold are ignored, and gold conversations without a
prediction are refused. It differs by less than 1e-7, since that scorer adds 1e-8 to its denominators and this one
gives 0 for an empty denominator.

It reads no files (`mechm_runtime.readers`) and prints nothing (`mechm.evaluation.report`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mechm_runtime.errors import LabelError
from mechm_runtime.types import EMOTIONS, LabelledConversation

SCORED_EMOTIONS = EMOTIONS[1:]
"""The six emotions that the task scores: all but neutral."""

DISTANCES = ("self", "1_back", "2_back", "3_or_more_back", "ahead")
"""The position of a cause relative to its emotion: in the same utterance, before it, or after it."""


class PairLike(Protocol):
    """The attributes of a pair, as `GoldPair` and `Pair` of mechm_runtime have them."""

    @property
    def emotion_utterance(self) -> int:
        """Id of the utterance that carries the emotion."""

    @property
    def emotion(self) -> str:
        """One of `EMOTIONS`."""

    @property
    def cause_utterance(self) -> int:
        """Id of the utterance with its cause."""


Pairs = Sequence[LabelledConversation] | Mapping[str, Collection[PairLike]]
"""Annotated conversations, or conversation id -> pairs."""


@dataclass(frozen=True, slots=True)
class Prf:
    """Precision, recall and F1, each in [0, 1]."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class ClassScore:
    """The score of one emotion, or of one distance.

    n_gold, n_predicted, n_correct: how often it is annotated, predicted, and predicted correctly.
    """

    precision: float
    recall: float
    f1: float
    n_gold: int
    n_predicted: int
    n_correct: int


@dataclass(frozen=True, slots=True)
class DistanceRecall:
    """The share of gold pairs found whose cause lies `distance` utterances after the emotion (before it: negative)."""

    distance: int
    n_gold: int
    n_correct: int
    recall: float


@dataclass(frozen=True, slots=True)
class PairScores:
    """Scores of emotion-cause pairs.

    weighted: averages over the six emotions, weighted by how often each is annotated; its F1 is the task's ranking.
    micro: over all pairs. macro: plain averages over the six emotions.
    per_emotion: emotion -> its score, in the order of `SCORED_EMOTIONS`.
    per_distance: one of `DISTANCES` -> the score of the pairs whose cause lies there, in that order.
    by_distance: recall by how many utterances away the cause lies, in rising order.
    n_ignored_neutral: predicted pairs with the emotion neutral, which the task does not score.
    n_ignored_conversations: predicted conversations that have no gold.
    """

    weighted: Prf
    micro: Prf
    macro: Prf
    per_emotion: Mapping[str, ClassScore]
    per_distance: Mapping[str, ClassScore]
    by_distance: tuple[DistanceRecall, ...]
    n_gold: int
    n_predicted: int
    n_correct: int
    n_ignored_neutral: int
    n_ignored_conversations: int


@dataclass(frozen=True, slots=True)
class EmotionScores:
    """Scores of utterances' emotions, over all seven labels.

    An utterance on which the system abstained counts as wrong: in accuracy, and in its own emotion's recall.

    confusion: `confusion[gold][predicted]`, counts in the order of `EMOTIONS`; abstentions are in none of its columns.
    abstained: per gold emotion, how many utterances have no prediction.
    """

    accuracy: float
    weighted_f1: float
    macro_f1: float
    per_emotion: Mapping[str, ClassScore]
    confusion: tuple[tuple[int, ...], ...]
    abstained: tuple[int, ...]
    n_utterances: int


def score_pairs(gold: Pairs, predicted: Pairs) -> PairScores:
    """Score predicted pairs against annotated ones.

    Raises: LabelError: a gold conversation without a prediction, or an emotion outside `EMOTIONS`.
    """
    gold_by_conversation, predicted_by_conversation = _keyed(gold), _keyed(predicted)
    missing = [name for name in gold_by_conversation if name not in predicted_by_conversation]
    if missing:
        raise LabelError(
            f"no prediction for {len(missing)} of {len(gold_by_conversation)} conversations, the first is {missing[0]}",
            hint="predict every conversation of the gold file, with an empty list where there are no pairs",
        )
    n_gold, n_predicted, n_correct = Counter[str](), Counter[str](), Counter[str]()
    distance_gold, distance_predicted, distance_correct = Counter[int](), Counter[int](), Counter[int]()
    for name, gold_pairs in gold_by_conversation.items():
        predicted_pairs = predicted_by_conversation[name]
        n_predicted.update(emotion for _, emotion, _ in predicted_pairs)
        distance_predicted.update(cause - at for at, emotion, cause in predicted_pairs if emotion in SCORED_EMOTIONS)
        for pair in gold_pairs:
            emotion_utterance, emotion, cause_utterance = pair
            n_gold[emotion] += 1
            n_correct[emotion] += pair in predicted_pairs
            if emotion in SCORED_EMOTIONS:
                distance_gold[cause_utterance - emotion_utterance] += 1
                distance_correct[cause_utterance - emotion_utterance] += pair in predicted_pairs
    per_emotion = {
        emotion: _class_score(n_gold[emotion], n_predicted[emotion], n_correct[emotion]) for emotion in SCORED_EMOTIONS
    }
    scores = tuple(per_emotion.values())
    totals = (sum(s.n_gold for s in scores), sum(s.n_predicted for s in scores), sum(s.n_correct for s in scores))
    return PairScores(
        weighted=_average(scores, [score.n_gold for score in scores]),
        micro=_prf(*totals),
        macro=_average(scores, [1] * len(scores)),
        per_emotion=per_emotion,
        per_distance=_per_distance(distance_gold, distance_predicted, distance_correct),
        by_distance=tuple(
            DistanceRecall(distance, count, distance_correct[distance], distance_correct[distance] / count)
            for distance, count in sorted(distance_gold.items())
        ),
        n_gold=totals[0],
        n_predicted=totals[1],
        n_correct=totals[2],
        n_ignored_neutral=n_predicted["neutral"],
        n_ignored_conversations=len(predicted_by_conversation.keys() - gold_by_conversation.keys()),
    )


def score_emotions(
    gold: Sequence[LabelledConversation], predicted: Mapping[str, Sequence[str | None]]
) -> EmotionScores:
    """Score utterances' emotions.

    predicted: conversation id -> a label per utterance in their order, None where the system abstained.

    Raises: LabelError: a gold conversation without a prediction, another number of labels than utterances, or an
        emotion outside `EMOTIONS`.
    """
    size = len(EMOTIONS)
    confusion = [[0] * size for _ in range(size)]
    abstained = [0] * size
    for labelled in gold:
        name = labelled.conversation.id
        emotions = predicted.get(name)
        if emotions is None or len(emotions) != len(labelled.emotions):
            found = "no emotions" if emotions is None else f"{len(emotions)} emotions"
            raise LabelError(f"conversation {name}: {found} for {len(labelled.emotions)} utterances")
        for truth, emotion in zip(labelled.emotions, emotions, strict=True):
            if emotion is None:
                abstained[EMOTIONS.index(truth)] += 1
            else:
                confusion[EMOTIONS.index(truth)][EMOTIONS.index(_known(emotion, name))] += 1
    per_emotion = {
        emotion: _class_score(sum(confusion[i]) + abstained[i], sum(row[i] for row in confusion), confusion[i][i])
        for i, emotion in enumerate(EMOTIONS)
    }
    scores = tuple(per_emotion.values())
    n_utterances = sum(score.n_gold for score in scores)
    return EmotionScores(
        accuracy=_ratio(sum(score.n_correct for score in scores), n_utterances),
        weighted_f1=_average(scores, [score.n_gold for score in scores]).f1,
        macro_f1=_average(scores, [1] * size).f1,
        per_emotion=per_emotion,
        confusion=tuple(map(tuple, confusion)),
        abstained=tuple(abstained),
        n_utterances=n_utterances,
    )


def _per_distance(
    n_gold: Mapping[int, int], n_predicted: Mapping[int, int], n_correct: Mapping[int, int]
) -> dict[str, ClassScore]:
    """The scores of `DISTANCES` from counts by how many utterances after the emotion the cause lies."""
    totals = {name: [0, 0, 0] for name in DISTANCES}
    for column, counts in enumerate((n_gold, n_predicted, n_correct)):
        for offset, n_pairs in counts.items():
            totals[DISTANCES[-1] if offset > 0 else DISTANCES[min(-offset, 3)]][column] += n_pairs
    return {name: _class_score(*counts) for name, counts in totals.items()}


def _keyed(pairs: Pairs) -> dict[str, frozenset[tuple[int, str, int]]]:
    """Conversation id -> the distinct pairs as plain tuples, so that `GoldPair` and `Pair` compare."""
    by_conversation: Mapping[str, Collection[PairLike]]
    if isinstance(pairs, Mapping):
        by_conversation = pairs
    else:
        by_conversation = {labelled.conversation.id: labelled.pairs for labelled in pairs}
        if len(by_conversation) != len(pairs):
            raise LabelError("two conversations have the same id", hint="give each conversation its own id")
    return {
        name: frozenset((p.emotion_utterance, _known(p.emotion, name), p.cause_utterance) for p in found)
        for name, found in by_conversation.items()
    }


def _known(emotion: str, conversation: str) -> str:
    if emotion not in EMOTIONS:
        raise LabelError(
            f"conversation {conversation}: unknown emotion {emotion[:24]!r}", hint=f"use one of {', '.join(EMOTIONS)}"
        )
    return emotion


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _prf(n_gold: int, n_predicted: int, n_correct: int) -> Prf:
    precision, recall = _ratio(n_correct, n_predicted), _ratio(n_correct, n_gold)
    return Prf(precision, recall, _ratio(2 * precision * recall, precision + recall))


def _class_score(n_gold: int, n_predicted: int, n_correct: int) -> ClassScore:
    score = _prf(n_gold, n_predicted, n_correct)
    return ClassScore(score.precision, score.recall, score.f1, n_gold, n_predicted, n_correct)


def _average(scores: Sequence[ClassScore], weights: Sequence[int]) -> Prf:
    total = sum(weights)
    return Prf(
        precision=_ratio(sum(w * s.precision for w, s in zip(weights, scores, strict=True)), total),
        recall=_ratio(sum(w * s.recall for w, s in zip(weights, scores, strict=True)), total),
        f1=_ratio(sum(w * s.f1 for w, s in zip(weights, scores, strict=True)), total),
    )
