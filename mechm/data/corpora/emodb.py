"""Reads EmoDB, the Berlin database of emotional speech, from its file names. It does not open the recordings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mechm.data.corpora.types import SpeechRecording
from mechm_runtime.errors import InputError

EMODB_EMOTIONS = {"W": "anger", "E": "disgust", "A": "fear", "F": "joy", "T": "sadness", "N": "neutral"}
"""EmoDB's letters (German words); L, boredom, has no counterpart in ECF."""


def read_emodb(folder: Path) -> tuple[SpeechRecording, ...]:
    """List EmoDB's recordings, named `SStttEv`: two digits for the speaker, three for the text, emotion and version.

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
