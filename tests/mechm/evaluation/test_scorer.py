"""The scorer against what other systems are known to reach, against counting by hand, and against its own laws."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechm.evaluation import ClassScore, EmotionScores, PairScores, Prf, score_emotions, score_pairs
from mechm.evaluation.run import evaluate
from mechm_runtime.errors import InputError, LabelError
from mechm_runtime.readers import read_labelled, read_submission
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

Annotation = Mapping[str, frozenset[GoldPair]]

PAIRS = st.frozensets(st.builds(GoldPair, st.integers(1, 6), st.sampled_from(EMOTIONS), st.integers(1, 6)), max_size=8)


@st.composite
def annotated(draw: st.DrawFn) -> tuple[Annotation, Annotation]:
    names = [str(number) for number in range(draw(st.integers(1, 4)))]
    return {name: draw(PAIRS) for name in names}, {name: draw(PAIRS) for name in names}


def labelled(name: str, *emotions: str, pairs: frozenset[GoldPair] = frozenset()) -> LabelledConversation:
    turns = tuple(Utterance(number, text="hm") for number in range(1, len(emotions) + 1))
    return LabelledConversation(Conversation(name, turns), emotions, pairs)


def test_counted_by_hand() -> None:
    gold = {
        "1": [GoldPair(1, "joy", 1), GoldPair(2, "joy", 1), GoldPair(3, "anger", 3)],
        "2": [GoldPair(1, "joy", 1)],
    }
    # Right: one joy and the anger. Wrong: an emotion, a cause, a conversation. Twice the same and neutral: not counted.
    predicted = {
        "1": [GoldPair(1, "joy", 1), GoldPair(2, "fear", 1), GoldPair(3, "anger", 3), GoldPair(3, "anger", 3)],
        "2": [GoldPair(2, "joy", 1), GoldPair(1, "neutral", 1)],
        "3": [GoldPair(1, "joy", 1)],
    }
    scores = score_pairs(gold, predicted)
    assert (scores.n_gold, scores.n_predicted, scores.n_correct) == (4, 4, 2)
    assert scores.micro.precision == scores.micro.recall == scores.micro.f1 == 0.5
    assert (scores.per_emotion["joy"].precision, scores.per_emotion["joy"].recall) == (1 / 2, 1 / 3)
    assert math.isclose(scores.per_emotion["joy"].f1, 0.4)
    assert scores.per_emotion["anger"].f1 == 1
    assert scores.per_emotion["fear"].f1 == 0
    assert math.isclose(scores.weighted.f1, (3 * 0.4 + 1 * 1) / 4)
    assert math.isclose(scores.macro.f1, (0.4 + 1) / 6)
    assert [(d.distance, d.n_gold, d.n_correct) for d in scores.by_distance] == [(-1, 1, 0), (0, 3, 2)]
    counted = {name: (d.n_gold, d.n_predicted, d.n_correct) for name, d in scores.per_distance.items()}
    nothing = (0, 0, 0)
    assert counted == {
        "self": (3, 2, 2),
        "1_back": (1, 2, 0),
        **dict.fromkeys(("2_back", "3_or_more_back", "ahead"), nothing),
    }
    assert (scores.n_ignored_neutral, scores.n_ignored_conversations) == (1, 1)


def test_distances_are_counted_where_they_belong() -> None:
    causes = {6: "self", 5: "1_back", 4: "2_back", 3: "3_or_more_back", 1: "3_or_more_back", 7: "ahead", 9: "ahead"}
    for cause, name in causes.items():
        scores = score_pairs({"1": [GoldPair(6, "joy", cause)]}, {"1": [GoldPair(6, "joy", cause)]})
        assert [one for one, score in scores.per_distance.items() if score.f1 == 1] == [name]


def in_unit_interval(scores: PairScores) -> bool:
    averages: list[Prf | ClassScore] = [scores.weighted, scores.micro, scores.macro, *scores.per_emotion.values()]
    return all(0 <= value <= 1 for one in averages for value in (one.precision, one.recall, one.f1))


@settings(deadline=None)
@given(annotated())
def test_laws_of_the_pair_score(both: tuple[Annotation, Annotation]) -> None:
    gold, predicted = both
    scores, swapped = score_pairs(gold, predicted), score_pairs(predicted, gold)
    assert in_unit_interval(scores)
    # Gold and prediction swapped exchange precision and recall; weighted recall is micro recall.
    assert math.isclose(scores.micro.precision, swapped.micro.recall)
    assert math.isclose(scores.micro.f1, swapped.micro.f1)
    assert math.isclose(scores.weighted.recall, scores.micro.recall)
    assert sum(d.n_gold for d in scores.by_distance) == scores.n_gold
    assert sum(d.n_correct for d in scores.by_distance) == scores.n_correct
    distances = scores.per_distance.values()
    totals = [sum(column) for column in zip(*((d.n_gold, d.n_predicted, d.n_correct) for d in distances), strict=True)]
    assert totals == [scores.n_gold, scores.n_predicted, scores.n_correct]
    assert {name: d.n_gold for name, d in swapped.per_distance.items()} == {
        name: d.n_predicted for name, d in scores.per_distance.items()
    }
    # Neutral pairs change nothing, on either side, and neither does the order or a repetition.
    scored = {name: [pair for pair in found if pair.emotion != "neutral"] for name, found in predicted.items()}
    without = score_pairs(gold, {name: list(found) * 2 for name, found in scored.items()})
    assert (without.weighted, without.micro, without.macro) == (scores.weighted, scores.micro, scores.macro)
    perfect = score_pairs(gold, gold)
    assert perfect.weighted.f1 == pytest.approx(1.0 if perfect.n_gold else 0.0)
    assert perfect.micro.f1 == (1.0 if perfect.n_gold else 0.0)


@settings(deadline=None)
@given(annotated(), PAIRS)
def test_a_wrong_pair_never_helps(both: tuple[Annotation, Annotation], more: frozenset[GoldPair]) -> None:
    gold, predicted = both
    scores = score_pairs(gold, predicted)
    worse = score_pairs(gold, dict(predicted) | {"0": predicted["0"] | (more - gold["0"])})
    assert worse.micro.f1 <= scores.micro.f1 + 1e-12
    assert worse.weighted.f1 <= scores.weighted.f1 + 1e-12


def test_pairs_of_gold_and_of_an_analysis_compare() -> None:
    gold = [labelled("1", "joy", pairs=frozenset({GoldPair(1, "joy", 1)}))]
    assert score_pairs(gold, {"1": (Pair(1, "joy", 1, 0.7),)}).weighted.f1 == 1


def test_missing_conversations_and_unknown_emotions_are_refused() -> None:
    gold = {"1": [GoldPair(1, "joy", 1)], "2": [GoldPair(1, "joy", 1)]}
    with pytest.raises(LabelError, match="no prediction for 1 of 2 conversations, the first is 2"):
        score_pairs(gold, {"1": []})
    with pytest.raises(LabelError, match="unknown emotion 'happiness'"):
        score_pairs(gold, {"1": [GoldPair(1, "happiness", 1)], "2": []})
    with pytest.raises(LabelError, match="same id"):
        score_pairs([labelled("1", "joy"), labelled("1", "joy")], {"1": []})


def check_consistent(scores: EmotionScores) -> None:
    for index, emotion in enumerate(EMOTIONS):
        one = scores.per_emotion[emotion]
        assert one.n_gold == sum(scores.confusion[index]) + scores.abstained[index]
        assert one.n_predicted == sum(row[index] for row in scores.confusion)
        assert one.n_correct == scores.confusion[index][index]


def test_emotions_counted_by_hand() -> None:
    gold = [labelled("1", "joy", "joy", "neutral"), labelled("2", "fear")]
    scores = score_emotions(gold, {"1": ["joy", "neutral", "neutral"], "2": [None]})
    check_consistent(scores)
    assert scores.accuracy == 0.5
    assert scores.n_utterances == 4
    assert scores.confusion[EMOTIONS.index("joy")][EMOTIONS.index("neutral")] == 1
    assert scores.abstained[EMOTIONS.index("fear")] == 1
    assert math.isclose(scores.weighted_f1, (2 * (2 / 3) + 1 * (2 / 3) + 1 * 0) / 4)
    assert math.isclose(scores.macro_f1, (2 / 3 + 2 / 3) / 7)


LABELS = st.lists(st.tuples(st.sampled_from(EMOTIONS), st.sampled_from((*EMOTIONS, None))), min_size=1, max_size=30)


@settings(deadline=None)
@given(LABELS)
def test_laws_of_the_emotion_score(labels: list[tuple[str, str | None]]) -> None:
    truth, found = [gold for gold, _ in labels], [predicted for _, predicted in labels]
    scores = score_emotions([labelled("1", *truth)], {"1": found})
    check_consistent(scores)
    assert math.isclose(scores.accuracy, sum(a == b for a, b in labels) / len(labels))
    assert 0 <= scores.macro_f1 <= 1
    assert score_emotions([labelled("1", *truth)], {"1": truth}).weighted_f1 == pytest.approx(1)


def test_emotions_for_other_utterances_are_refused() -> None:
    gold = [labelled("1", "joy", "joy")]
    for predicted in ({}, {"1": ["joy"]}, {"1": ["joy"] * 3}, {"1": ["joy", "happiness"]}):
        with pytest.raises(LabelError):
            score_emotions(gold, predicted)


def own_cause(emotion: str) -> Callable[[Conversation], Analysis]:
    """A system that gives every utterance one emotion, caused by itself."""

    def analyze(conversation: Conversation) -> Analysis:
        utterances = tuple(
            UtteranceAnalysis(u.id, u.speaker, u.text, u.start_s, u.end_s, emotion, {emotion: 1.0}, ("text",))
            for u in conversation.utterances
        )
        pairs = tuple(Pair(u.id, emotion, u.id, 1.0) for u in conversation.utterances)
        return Analysis(conversation.id, utterances, pairs, {}, "rule")

    return analyze


def test_evaluate_scores_what_an_analysis_says() -> None:
    pairs = frozenset({GoldPair(1, "joy", 1), GoldPair(2, "joy", 1)})
    gold = [labelled("1", "joy", "joy", pairs=pairs), labelled("2", "neutral")]
    progress: list[int] = []
    report = evaluate(gold, own_cause("joy"), gold_name="g", system="s", on_progress=progress.append)
    assert report.emotions is not None
    assert report.speed is not None
    assert progress == [2, 1]
    assert math.isclose(report.emotions.accuracy, 2 / 3)
    assert (report.pairs.n_gold, report.pairs.n_predicted, report.pairs.n_correct) == (2, 3, 1)
    assert (report.modalities, report.n_conversations, report.n_utterances) == ("text", 2, 3)
    assert 0 <= report.speed.p50_ms <= report.speed.p99_ms
    clips = [Conversation("1", (Utterance(1, media=Path("a.mp4")), Utterance(2))), gold[1].conversation]
    assert evaluate(gold, own_cause("joy"), gold_name="g", system="s", conversations=clips).n_missing_clips == 2


def test_evaluate_refuses_answers_to_other_questions() -> None:
    gold = [labelled("1", "joy", "joy"), labelled("2", "neutral")]
    with pytest.raises(LabelError, match="not those of the gold"):
        evaluate(gold, own_cause("joy"), gold_name="g", system="s", conversations=[gold[1].conversation])
    with pytest.raises(LabelError, match="of other utterances"):
        evaluate(gold, lambda _: own_cause("joy")(gold[1].conversation), gold_name="g", system="s")
    with pytest.raises(InputError, match="no conversations"):
        evaluate([], own_cause("joy"), gold_name="g", system="s")


@pytest.mark.parametrize(
    ("name", "micro_f1", "weighted_f1"),
    [("nus_emo", 0.4346, 0.4312), ("nus_emo_tec", 0.4373, 0.4317), ("gpt4o", 0.2936, 0.3052)],
)
def test_published_answers_get_their_official_score(name: str, micro_f1: float, weighted_f1: float) -> None:
    folder = os.environ.get("MECHM_DATA")
    if not folder:
        pytest.skip("MECHM_DATA is not set: the folder with data/ecf/test.txt and data/ecf/rivals")
    ecf = Path(folder) / "data" / "ecf"
    scores = score_pairs(read_labelled(ecf / "test.txt"), read_submission(ecf / "rivals" / f"{name}.json"))
    assert round(scores.micro.f1, 4) == micro_f1
    assert round(scores.weighted.f1, 4) == weighted_f1
    assert [field.name for field in fields(scores)][:3] == ["weighted", "micro", "macro"]
