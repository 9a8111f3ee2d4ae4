"""Training plan: stages of epochs over corpora, whose batches are all planned before the first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mechm_runtime.errors import InputError
from mechm_runtime.types import EMOTIONS, LabelledConversation

Group = list[LabelledConversation]


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the training: names of corpora and a number of epochs."""

    name: str
    corpora: tuple[str, ...]
    epochs: int

    def __post_init__(self) -> None:
        if not self.corpora or self.epochs < 1:
            raise ValueError(f"stage {self.name!r} needs a corpus and an epoch at least")


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over a stage's corpora. number: counted from 1. groups: one per batch."""

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
    batches_per_step: int = 1,
) -> list[Epoch]:
    """Plan every epoch's batches in order; the learning rate depends on their number.

    group: makes batches of conversations. batches_per_step: neighbours in its result stay together in one step; where
        it sorts by size, the processes of a training wait less for each other.
    """
    epochs = []
    for stage in stages:
        for number in range(1, stage.epochs + 1):
            steps: list[list[Group]] = []
            rest: list[Group] = []
            for name in stage.corpora:
                groups = group(corpora[name])
                whole = len(groups) - len(groups) % batches_per_step
                steps += [groups[at : at + batches_per_step] for at in range(0, whole, batches_per_step)]
                rest += groups[whole:]  # at the epoch's end, or the following steps would mix neighbours
            shuffled = [one for index in random.permutation(len(steps)) for one in steps[index]]
            epochs.append(Epoch(stage, number, shuffled + rest))
    return epochs


def absent_emotions(conversations: Sequence[LabelledConversation]) -> tuple[str, ...]:
    """Return the emotions that no utterance is labelled with."""
    seen = {emotion for one in conversations for emotion in one.emotions}
    return tuple(emotion for emotion in EMOTIONS if emotion not in seen)


def balance_emotions(
    conversations: Sequence[LabelledConversation], limit: int, seed: int
) -> tuple[LabelledConversation, ...]:
    """Draw at most `limit` of conversations of a single utterance, as evenly over emotions as they allow."""
    random = np.random.default_rng(seed)
    kept: list[LabelledConversation] = []
    by_emotion = [[c for c in conversations if c.emotions == (e,)] for e in EMOTIONS]
    for n_left, some in zip(range(len(EMOTIONS), 0, -1), sorted(by_emotion, key=len), strict=True):
        share = (limit - len(kept)) // n_left
        kept += [some[index] for index in random.permutation(len(some))[:share]]
    return tuple(kept)
