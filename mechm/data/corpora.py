"""Readers of annotated corpora beyond ECF: GoEmotions, RECCON and EmoDB.

ECF itself is read by `mechm_runtime.readers`. Layouts are those of the public releases; each reader says what it
expects. Labels are mapped to `EMOTIONS`; what has no counterpart there is left out and counted by the caller's choice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
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

EMODB_EMOTIONS = {"W": "anger", "E": "disgust", "A": "fear", "F": "joy", "T": "sadness", "N": "neutral"}
"""EmoDB's letters (German words); L, boredom, has no counterpart in ECF."""


def read_goemotions(folder: Path, split: str = "train") -> tuple[LabelledConversation, ...]:
    """Single comments with one of the seven Ekman labels, each as a conversation of one utterance without a speaker.

    Expects `labels.txt` (a name a line) and `<split>.tsv` (`text`, comma separated label indices, id). A comment with
    several labels is left out: the emotion head decides for one.
    Raises: InputError: a file is missing or a row is malformed.
    """
    names = {str(index): name for index, name in enumerate(_read_lines(folder / "labels.txt"))}
    conversations = []
    for number, line in enumerate(_read_lines(folder / f"{split}.tsv"), 1):
        try:
            text, labels, comment_id = line.split("\t")
            emotions = [names[index] for index in labels.split(",")]
        except (ValueError, KeyError) as error:
            raise InputError(f"{split}.tsv, line {number}: expected text, label indices and id") from error
        if len(emotions) == 1:
            conversation = Conversation(comment_id, (Utterance(1, text=text.replace("[NAME]", "you")),))
            conversations.append(LabelledConversation(conversation, (emotions[0],), frozenset()))
    return tuple(conversations)


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


@dataclass(frozen=True, slots=True)
class SpeechRecording:
    """One recording of emotional speech."""

    path: Path
    speaker: str
    emotion: str


def read_emodb(folder: Path) -> tuple[SpeechRecording, ...]:
    """EmoDB recordings `SStttEv`: two digits of speaker, three characters of text, letters of emotion and version.

    Boredom is left out.
    Raises: InputError: no such recordings in the folder.
    """
    found = tuple(_emodb_recordings(folder))
    if not found:
        raise InputError(f"no EmoDB recordings in {folder.name}", hint="expected files such as 03a01Fa.wav or .flac")
    return found


def _emodb_recordings(folder: Path) -> Iterator[SpeechRecording]:
    for path in sorted(folder.glob("*")):
        name = path.stem
        if len(name) == 7 and name[:2].isdigit() and name[5] in EMODB_EMOTIONS and path.suffix in (".wav", ".flac"):
            yield SpeechRecording(path, name[:2], EMODB_EMOTIONS[name[5]])


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except OSError as error:
        raise InputError(f"cannot read {path.name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is not UTF-8 text") from error
