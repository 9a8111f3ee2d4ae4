"""Renames a conversation's speakers at random, so that a model does not learn the habits of a series' characters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mechm_runtime.fusion.inputs import speaker_numbers
from mechm_runtime.types import Conversation, LabelledConversation

SPEAKER_NAMES = ("A", "B", "C", "D", "E", "F", "Speaker 1", "Speaker 2", "Speaker 3", "Anna", "Ben", "Caller", "Clara",
                 "David", "Doctor", "Emma", "Guest", "Host", "Jack", "Julia", "Karen", "Leo", "Maria", "Mark", "Mother",
                 "Nina", "Paul", "Sam", "Sarah", "Tom", "")  # fmt: skip
"""Names that replace those of a corpus."""


def rename_speakers(labelled: LabelledConversation, random: np.random.Generator, rate: float) -> LabelledConversation:
    """Return the conversation with other names for its speakers, with probability `rate`."""
    if random.random() >= rate:
        return labelled
    numbers = speaker_numbers(labelled.conversation.utterances)
    if max(numbers) >= len(SPEAKER_NAMES):
        return labelled
    names = random.permutation(SPEAKER_NAMES)
    utterances = tuple(
        replace(u, speaker=str(names[number]))
        for u, number in zip(labelled.conversation.utterances, numbers, strict=True)
    )
    return replace(labelled, conversation=Conversation(labelled.conversation.id, utterances))
