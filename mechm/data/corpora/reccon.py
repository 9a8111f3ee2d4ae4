"""RECCON: dialogues of DailyDialog and IEMOCAP with an emotion per turn and the turns that caused it; text alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mechm_runtime.errors import InputError
from mechm_runtime.types import EMOTIONS, Conversation, GoldPair, LabelledConversation, Utterance

RECCON_EMOTIONS = {
    "happiness": "joy",
    "happines": "joy",
    "happy": "joy",
    "excited": "joy",
    "angry": "anger",
    "sad": "sadness",
    "surprised": "surprise",
}
"""Spellings of the public release, with its slips."""


def read_reccon(path: Path) -> tuple[LabelledConversation, ...]:
    """RECCON dialogues (JSON of the public release): an emotion per turn and the turns that caused it.

    Causes outside the dialogue ("b", background) are left out; a dialogue with an emotion that ECF does not have
    (IEMOCAP's frustration) is left out as a whole, since its other labels would be read without it.
    Raises: InputError: the file is missing or not in that layout.
    """
    try:
        data: dict[str, list[list[dict[str, Any]]]] = json.loads(path.read_text(encoding="utf-8"))
        return tuple(
            conversation
            for name, variants in data.items()
            for conversation in [_reccon_conversation(name, variants[0])]
            if conversation is not None
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise InputError(f"{path.name} is not a RECCON file: {error}") from error


def _reccon_conversation(name: str, turns: list[dict[str, Any]]) -> LabelledConversation | None:
    emotions = [RECCON_EMOTIONS.get(turn["emotion"], turn["emotion"]) for turn in turns]
    if any(emotion not in EMOTIONS for emotion in emotions):
        return None
    numbers = {turn["turn"] for turn in turns}
    pairs = {
        GoldPair(turn["turn"], emotion, cause)
        for turn, emotion in zip(turns, emotions, strict=True)
        if emotion != "neutral"
        for cause in turn.get("expanded emotion cause evidence", [])
        if cause in numbers
    }
    utterances = tuple(Utterance(turn["turn"], turn["speaker"], turn["utterance"]) for turn in turns)
    return LabelledConversation(Conversation(name, utterances), tuple(emotions), frozenset(pairs))
