"""Reads RECCON: dialogues of DailyDialog and IEMOCAP with an emotion and its causes per turn; text only.

The JSON of the release (declare-lab/RECCON, `data/original_annotation`):

    {"tr_1": [[{"turn": 1, "speaker": "A", "utterance": "…", "emotion": "happiness",
                "expanded emotion cause evidence": [1, "b"]}, …]]}

A cause is a turn's number, or "b" for something in the background that is not said.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mechm_runtime.errors import InputError, LabelError, TranscriptError
from mechm_runtime.readers.text_file import quote
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
"""Spellings in the public release, with its typos."""

UNMAPPED_EMOTIONS = ("frustrated",)
"""Emotions of IEMOCAP without a counterpart in ECF."""

BACKGROUND = "b"
CAUSES = "expanded emotion cause evidence"
_HINT = "take the file as declare-lab/RECCON has it, such as dailydialog_train.json"


def read_reccon(path: Path) -> tuple[LabelledConversation, ...]:
    """Read RECCON dialogues: an emotion per turn and the turns that caused it.

    Causes in the background are left out. Dialogues with an emotion of `UNMAPPED_EMOTIONS` are left out as a whole,
    since their other labels depend on it.
    Raises: InputError: the file is missing, in another layout, or has no usable dialogue. LabelError: an unknown
        emotion, or a cause that is not a turn. TranscriptError: turns that repeat or are out of order.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path.name}: {error.strerror}", hint=_HINT) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path.name} is not a RECCON file: not JSON ({error})", hint=_HINT) from error
    if not isinstance(data, dict):
        raise InputError(f"{path.name} is not a RECCON file: not an object of dialogues", hint=_HINT)
    read = (_dialogue(path, str(name), variants) for name, variants in data.items())
    dialogues = tuple(one for one in read if one is not None)
    if not dialogues:
        raise InputError(f"{path.name}: no dialogues that can be used", hint=_HINT)
    return dialogues


def _dialogue(path: Path, name: str, variants: object) -> LabelledConversation | None:
    place = f"{path.name}, dialogue {quote(name)}"
    if not isinstance(variants, list) or not variants or not isinstance(variants[0], list) or not variants[0]:
        raise InputError(f"{place}: no list of turns", hint=_HINT)
    turns = [_turn(place, turn) for turn in variants[0]]
    emotions = [turn["emotion"] for turn in turns]
    if any(emotion in UNMAPPED_EMOTIONS for emotion in emotions):
        return None
    try:
        utterances = tuple(Utterance(turn["turn"], turn["speaker"], turn["utterance"]) for turn in turns)
        conversation = Conversation(name, utterances)
    except TranscriptError as error:
        raise TranscriptError(f"{place}: {error}", hint=error.hint) from error
    numbers = {turn["turn"] for turn in turns}
    pairs = set()
    for turn, emotion in zip(turns, emotions, strict=True):
        for cause in turn[CAUSES]:
            if cause != BACKGROUND and cause not in numbers:
                raise LabelError(
                    f"{place}, turn {turn['turn']}: the cause {quote(cause)} is no turn of it",
                    hint=f'a cause is the number of a turn, or "{BACKGROUND}" for the background',
                )
            if cause != BACKGROUND and emotion != "neutral":
                pairs.add(GoldPair(turn["turn"], emotion, cause))
    return LabelledConversation(conversation, tuple(emotions), frozenset(pairs))


def _turn(place: str, turn: object) -> dict[str, Any]:
    """Check a turn; its emotion becomes one of `EMOTIONS` or `UNMAPPED_EMOTIONS`."""
    kinds = {"turn": int, "speaker": str, "utterance": str, "emotion": str}
    if not isinstance(turn, dict) or any(type(turn.get(key)) is not kind for key, kind in kinds.items()):
        raise InputError(f"{place}: a turn without its number, speaker, utterance or emotion", hint=_HINT)
    causes = turn.get(CAUSES, [])
    if not isinstance(causes, list) or any(type(cause) not in (int, str) for cause in causes):
        raise InputError(f"{place}, turn {turn['turn']}: causes that are not a list of turns", hint=_HINT)
    emotion = RECCON_EMOTIONS.get(turn["emotion"], turn["emotion"])
    if emotion not in (*EMOTIONS, *UNMAPPED_EMOTIONS):
        raise LabelError(
            f"{place}, turn {turn['turn']}: unknown emotion {quote(emotion)}",
            hint=f"use one of {', '.join((*EMOTIONS, *RECCON_EMOTIONS))}",
        )
    return {**turn, "emotion": emotion, CAUSES: causes}
