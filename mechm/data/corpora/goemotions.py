"""Reads GoEmotions: single comments with the seven Ekman labels, without conversation or recordings."""

from __future__ import annotations

from pathlib import Path

from mechm_runtime.errors import InputError, LabelError
from mechm_runtime.readers.text_file import quote
from mechm_runtime.types import EMOTIONS, Conversation, LabelledConversation, Utterance

_HINT = "give the folder with labels.txt (the seven Ekman labels) and train.tsv of GoEmotions"


def read_goemotions(folder: Path, split: str = "train") -> tuple[LabelledConversation, ...]:
    """Read comments with one of the seven Ekman labels, each as a conversation of one utterance without a speaker.

    Expects `labels.txt` (one name per line) and `<split>.tsv` (`text`, comma separated label indices, id). Comments
    with several labels are left out, since the emotion head predicts one.
    Raises: InputError: a file is missing, a row is malformed, or no comment can be used. LabelError: a label that is
        not in `EMOTIONS`, such as the release's 27 finer ones.
    """
    names = {}
    for number, name in enumerate(_read_lines(folder / "labels.txt"), 1):
        if name not in EMOTIONS:
            raise LabelError(f"labels.txt, line {number}: unknown emotion {quote(name)}", hint=_HINT)
        names[str(number - 1)] = name
    conversations = []
    for number, line in enumerate(_read_lines(folder / f"{split}.tsv"), 1):
        try:
            text, labels, comment_id = line.split("\t")
            emotions = [names[index] for index in labels.split(",")]
        except (ValueError, KeyError) as error:
            reason = "expected text, label indices and id, separated by tabs"
            raise InputError(f"{split}.tsv, line {number}: {reason}", hint=_HINT) from error
        if len(emotions) == 1:
            conversation = Conversation(comment_id, (Utterance(1, text=text.replace("[NAME]", "you")),))
            conversations.append(LabelledConversation(conversation, (emotions[0],), frozenset()))
    if not conversations:
        raise InputError(f"{split}.tsv: no comment with one label", hint=_HINT)
    return tuple(conversations)


def _read_lines(path: Path) -> list[str]:
    """Read the lines of a file, without `splitlines`, which also splits at characters that comments contain."""
    try:
        return path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except OSError as error:
        raise InputError(f"cannot read {path.name}: {error.strerror}", hint=_HINT) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is not UTF-8 text", hint=_HINT) from error
