"""Attach recordings to conversations: a clip per utterance, or a recording without a transcript.

Folders are listed once and file names are compared; no clip is opened, so a broken clip is found when it is decoded.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mechm_runtime.errors import InputError, MediaError, TranscriptError
from mechm_runtime.readers.text_file import quote
from mechm_runtime.types import Conversation, Utterance

CLIP_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus")
"""Suffixes of clips; where several exist, the first of this list is used."""

MAX_UTTERANCE_S = 30.0
"""Longest recording in seconds that is accepted as one utterance where there is no transcript."""

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
# Split -> folder of MELD.Raw.
_MELD_FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}


def clips_for(
    conversations: Sequence[Conversation], folder: Path, *, names: Mapping[tuple[str, int], str] | None = None
) -> tuple[Conversation, ...]:
    """Give each utterance its own clip from a folder.

    An utterance's clip is the file that `names` gives (with or without its suffix), or else `dia{N}utt{M}` with the
    conversation's and the utterance's ids. A MELD name, `train_dia559_utt0`, is also searched as MELD stores it:
    `train_splits/dia559_utt0.mp4` below the folder. An utterance without a clip keeps `media` None; the caller reports
    it.

    names: (conversation id, utterance id) -> clip name, as `clip_names` reads them from a transcript.

    Raises: MediaError: the folder cannot be listed, or holds none of the clips. TranscriptError: a name that is a path.
    """
    files = _listing(folder)
    for split, subfolder in _MELD_FOLDERS.items():
        if f"{subfolder}/" in files:
            listed = _listing(folder / subfolder)
            files |= {f"{split}_{name}": path for name, path in listed.items()}
    attached = tuple(
        replace(
            conversation,
            utterances=tuple(
                replace(utterance, media=_clip(files, conversation.id, utterance.id, names or {}))
                for utterance in conversation.utterances
            ),
        )
        for conversation in conversations
    )
    if not any(utterance.media for conversation in attached for utterance in conversation.utterances):
        first = conversations[0] if conversations else None
        example = f"dia{first.id}utt{first.utterances[0].id}.mp4" if first else "dia1utt1.mp4"
        raise MediaError(f"{folder.name}: no clip of this transcript", hint=f"name the clips like {example}")
    return attached


def conversation_from_media(path: Path, duration_s: float) -> Conversation:
    """A conversation of one utterance with unknown words, for a recording without a transcript.

    duration_s: the recording's duration in seconds.

    Raises: InputError: longer than `MAX_UTTERANCE_S`. MediaError: the duration is not a positive number.
    """
    if not math.isfinite(duration_s) or duration_s <= 0:
        raise MediaError(f"{path.name}: the recording has no duration")
    if duration_s > MAX_UTTERANCE_S:
        raise InputError(
            f"{path.name}: {duration_s:.1f} s without a transcript, more than the {MAX_UTTERANCE_S:.0f} s of one turn",
            hint="give a transcript: --transcript FILE (SRT, WebVTT, STM, RTTM or ECF JSON)",
        )
    return Conversation(path.stem, (Utterance(1, start_s=0.0, end_s=duration_s),), path)


def _listing(folder: Path) -> dict[str, Path]:
    """File name -> path of a folder's entries; a subfolder's name ends with a slash."""
    try:
        with os.scandir(folder) as entries:
            return {f"{entry.name}/" if entry.is_dir() else entry.name: Path(entry.path) for entry in entries}
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a usable path"
        raise MediaError(
            f"{quote(folder)}: the folder of clips cannot be listed ({reason})",
            hint="give a folder with a clip per utterance",
        ) from error


def _clip(
    files: Mapping[str, Path], conversation: str, utterance: int, names: Mapping[tuple[str, int], str]
) -> Path | None:
    for candidate in _candidates(conversation, utterance, names.get((conversation, utterance))):
        if candidate in files:
            return files[candidate]
    return None


def _candidates(conversation: str, utterance: int, name: str | None) -> Iterator[str]:
    if name is not None:
        if _NAME.fullmatch(name) is None:
            raise TranscriptError(
                f"conversation {conversation}, utterance {utterance}: {quote(name)} is not a clip's name",
                hint="name the file without its folder",
            )
        yield name
        yield from (name + suffix for suffix in CLIP_SUFFIXES)
    yield from (f"dia{conversation}utt{utterance}{suffix}" for suffix in CLIP_SUFFIXES)
