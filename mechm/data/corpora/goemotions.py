"""GoEmotions: single comments with the seven Ekman labels; text alone, no conversation around them."""

from __future__ import annotations

from pathlib import Path

from mechm_runtime.errors import InputError
from mechm_runtime.types import Conversation, LabelledConversation, Utterance


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


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except OSError as error:
        raise InputError(f"cannot read {path.name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is not UTF-8 text") from error
