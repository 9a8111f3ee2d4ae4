"""Splits conversations that are longer than the fusion's window into pieces for training.

The runtime reads a long conversation in overlapping windows (`mechm_runtime.fusion.run.window_spans`); training uses
separate pieces of at most that length, since memory grows with the square of a conversation's length. Every utterance
is in exactly one piece. Cuts are made where no annotated pair spans them, else where the fewest do; the pairs lost that
way are counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mechm_runtime.types import LabelledConversation


@dataclass(frozen=True, slots=True)
class Pieces:
    """Result of `split_long`. n_split: conversations that were too long. n_crossing: pairs lost at the cuts."""

    conversations: tuple[LabelledConversation, ...]
    n_split: int
    n_crossing: int


def split_long(conversations: Sequence[LabelledConversation], max_utterances: int) -> Pieces:
    """Split conversations into pieces of at most `max_utterances` utterances, in order; shorter ones are unchanged."""
    pieces: list[LabelledConversation] = []
    n_split = n_crossing = 0
    for labelled in conversations:
        if len(labelled.emotions) <= max_utterances:
            pieces.append(labelled)
            continue
        parts = list(_split(labelled, max_utterances))
        pieces += parts
        n_split += 1
        n_crossing += len(labelled.pairs) - sum(len(part.pairs) for part in parts)
    return Pieces(tuple(pieces), n_split, n_crossing)


def _split(labelled: LabelledConversation, max_utterances: int) -> Iterator[LabelledConversation]:
    """Yield one conversation's pieces. Utterances keep their ids; a piece's id is the conversation's and a number."""
    utterances = labelled.conversation.utterances
    n = len(utterances)
    position = {utterance.id: at for at, utterance in enumerate(utterances)}
    crossing = np.zeros(n + 1, np.int64)  # pairs that a cut before each position would separate
    for pair in labelled.pairs:
        ends = sorted((position[pair.emotion_utterance], position[pair.cause_utterance]))
        crossing[ends[0] + 1 : ends[1] + 1] += 1
    first = number = 0
    while first < n:
        last = min(first + max_utterances, n)
        if last < n:
            # At least half the maximum, since short pieces have little context. Of equally good cuts, the latest.
            earliest = first + max(1, max_utterances // 2)
            last = earliest + int(len(crossing[earliest : last + 1]) - 1 - crossing[earliest : last + 1][::-1].argmin())
        ids = {utterance.id for utterance in utterances[first:last]}
        number += 1
        name = f"{labelled.conversation.id}/{number}"
        yield LabelledConversation(
            replace(labelled.conversation, id=name, utterances=utterances[first:last]),
            labelled.emotions[first:last],
            frozenset(p for p in labelled.pairs if {p.emotion_utterance, p.cause_utterance} <= ids),
        )
        first = last
