"""In which order corpora are learnt: stages of epochs, each with batches that are known before the first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mechm_runtime.errors import InputError
from mechm_runtime.types import EMOTIONS, LabelledConversation

Group = list[LabelledConversation]


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the training: which corpora (keys of the training data) for how many epochs."""

    name: str
    corpora: tuple[str, ...]
    epochs: int

    def __post_init__(self) -> None:
        if not self.corpora or self.epochs < 1:
            raise ValueError(f"stage {self.name!r} needs a corpus and an epoch at least")


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over a stage's corpora, the `number`th from 1; each group is a batch."""

    stage: Stage
    number: int
    groups: list[Group]


def check_corpora(stages: Sequence[Stage], corpora: Mapping[str, Sequence[LabelledConversation]], *more: str) -> None:
    """Raises: InputError: a corpus of the stages, or one of `more`, is missing or empty."""
    names = dict.fromkeys((*(name for stage in stages for name in stage.corpora), *more))
    absent = [name for name in names if not corpora.get(name)]
    if absent:
        raise InputError(f"no conversations in {', '.join(absent)}")


def plan_epochs(
    stages: Sequence[Stage],
    corpora: Mapping[str, Sequence[LabelledConversation]],
    group: Callable[[Sequence[LabelledConversation]], list[Group]],
    random: np.random.Generator,
    side_by_side: int = 1,
) -> list[Epoch]:
    """Every epoch's batches in order; known before the first step, since the learning rate depends on their number.

    side_by_side: batches of one step. Neighbours of what `group` returns are kept in one step: where it returns them by
        size, processes of one training wait less for each other.
    """
    epochs = []
    for stage in stages:
        for number in range(1, stage.epochs + 1):
            steps: list[list[Group]] = []
            left: list[Group] = []
            for name in stage.corpora:
                groups = group(corpora[name])
                whole = len(groups) - len(groups) % side_by_side
                steps += [groups[at : at + side_by_side] for at in range(0, whole, side_by_side)]
                left += groups[whole:]  # at the epoch's end, or every step behind them would be of other neighbours
            shuffled = [one for index in random.permutation(len(steps)) for one in steps[index]]
            epochs.append(Epoch(stage, number, shuffled + left))
    return epochs


def absent_emotions(conversations: Sequence[LabelledConversation]) -> tuple[str, ...]:
    """The emotions that no utterance carries: what was never seen is never found."""
    seen = {emotion for one in conversations for emotion in one.emotions}
    return tuple(emotion for emotion in EMOTIONS if emotion not in seen)


def balanced(conversations: Sequence[LabelledConversation], limit: int, seed: int) -> tuple[LabelledConversation, ...]:
    """At most `limit` of conversations of one utterance, as many of each emotion as there are."""
    random = np.random.default_rng(seed)
    kept: list[LabelledConversation] = []
    of = {e: [c for c in conversations if c.emotions == (e,)] for e in EMOTIONS}
    for left, (_, some) in zip(
        range(len(EMOTIONS), 0, -1), sorted(of.items(), key=lambda item: len(item[1])), strict=True
    ):
        share = (limit - len(kept)) // left
        kept += [some[index] for index in random.permutation(len(some))[:share]]
    return tuple(kept)
