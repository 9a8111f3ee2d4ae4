"""Annotated conversations of a gold file, with the name that reports carry and their clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mechm_runtime.readers import clip_names, clips_for, read_labelled
from mechm_runtime.types import Conversation, LabelledConversation


@dataclass(frozen=True, slots=True)
class Gold:
    """name: the file's name, with the limit where only the first conversations were kept."""

    path: Path
    name: str
    conversations: Sequence[LabelledConversation]

    @property
    def n_utterances(self) -> int:
        """Utterances of all conversations."""
        return sum(len(labelled.emotions) for labelled in self.conversations)

    def with_clips(self, folder: Path) -> Sequence[Conversation]:
        """The conversations with the clips of a folder attached to their utterances.

        Raises: MediaError: the folder cannot be listed, or holds none of the clips. TranscriptError: a name is a path.
        """
        conversations = [labelled.conversation for labelled in self.conversations]
        return clips_for(conversations, folder, names=clip_names(self.path))


def read_gold(path: Path, limit: int | None = None) -> Gold:
    """Read a gold file.

    limit: keep only the first conversations.
    Raises: InputError, TranscriptError, LabelError: the file is missing or not an annotated one.
    """
    conversations = read_labelled(path)
    if limit is None or limit >= len(conversations):
        return Gold(path, path.name, conversations)
    return Gold(path, f"{path.name}, first {limit} of {len(conversations)}", conversations[:limit])
