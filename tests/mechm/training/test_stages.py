"""The plan of a training: every batch once an epoch, and those of one step side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from mechm.training.stages import Group, Stage, absent_emotions, balance_emotions, check_corpora, plan_epochs
from mechm_runtime.errors import InputError
from mechm_runtime.types import Conversation, LabelledConversation, Utterance


def comments(name: str, n: int, emotion: str = "joy") -> list[LabelledConversation]:
    return [
        LabelledConversation(Conversation(f"{name}{i:02}", (Utterance(1, None, "Hm."),)), (emotion,), frozenset())
        for i in range(n)
    ]


def one_a_group(conversations: Sequence[LabelledConversation]) -> list[Group]:
    return [[one] for one in conversations]


def names(groups: Sequence[Group]) -> list[str]:
    return [one.conversation.id for group in groups for one in group]


CORPORA = {"a": comments("a", 7), "b": comments("b", 4)}
STAGES = (Stage("both", ("a", "b"), 2), Stage("last", ("b",), 1))


@pytest.mark.parametrize("side_by_side", [1, 2, 3])
def test_every_epoch_holds_each_batch_once(side_by_side: int) -> None:
    plan = plan_epochs(STAGES, CORPORA, one_a_group, np.random.default_rng(0), side_by_side)
    assert [(epoch.stage.name, epoch.number) for epoch in plan] == [("both", 1), ("both", 2), ("last", 1)]
    everything = names(one_a_group([*CORPORA["a"], *CORPORA["b"]]))
    for epoch in plan[:2]:
        assert sorted(names(epoch.groups)) == everything
    assert sorted(names(plan[2].groups)) == names(one_a_group(CORPORA["b"]))
    assert names(plan[0].groups) != names(plan[1].groups)


def test_neighbours_stay_in_one_step() -> None:
    plan = plan_epochs(STAGES, CORPORA, one_a_group, np.random.default_rng(1), 2)
    for epoch in plan[:2]:
        ordered = names(epoch.groups)
        steps = {tuple(ordered[at : at + 2]) for at in range(0, 10, 2)}
        assert steps == {("a00", "a01"), ("a02", "a03"), ("a04", "a05"), ("b00", "b01"), ("b02", "b03")}
        assert ordered[10:] == ["a06"]  # the odd one comes last, or the steps behind it would shift


def test_a_missing_corpus_is_named() -> None:
    check_corpora(STAGES, CORPORA)
    with pytest.raises(InputError, match=r"no conversations in b, dev$"):
        check_corpora(STAGES, {"a": CORPORA["a"], "b": []}, "dev")


def test_a_stage_needs_a_corpus_and_an_epoch() -> None:
    with pytest.raises(ValueError, match="needs a corpus"):
        Stage("none", (), 1)
    with pytest.raises(ValueError, match="needs a corpus and an epoch"):
        Stage("never", ("a",), 0)


def test_balanced_takes_as_many_of_each_emotion_as_there_are() -> None:
    mixed = comments("j", 20) + comments("f", 2, "fear") + comments("n", 20, "neutral")
    kept = balance_emotions(mixed, 12, seed=0)
    count = {emotion: sum(one.emotions == (emotion,) for one in kept) for emotion in ("joy", "fear", "neutral")}
    assert count == {"joy": 5, "fear": 2, "neutral": 5}
    assert set(absent_emotions(kept)) == {"anger", "disgust", "sadness", "surprise"}
