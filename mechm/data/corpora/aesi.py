"""Reads AESI, the Athens Emotional States Inventory: Greek sentences spoken in five emotional states.

The states are anger, fear, joy, sadness and neutral; 696 recordings of 20 speakers, about 28 minutes (Chaspari et al.,
World Journal of Biological Psychiatry 16, 2015). The layout of its files is not published, and copies are available
from the authors. This reader therefore takes a folder of recordings, of any depth, with a label table:

    <folder>/labels.csv           file,speaker,emotion        separated by comma, semicolon or tab
                                  s01/anger_03.wav,s01,anger
    <folder>/s01/anger_03.wav     … (further columns of the table are ignored)

`file` is a path relative to the folder, or the unique name of a recording in it, with or without its suffix.
`emotion` is one of `AESI_EMOTIONS` in any case, with or without accents; others are refused.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from pathlib import Path

from mechm.data.corpora.files import TableRow, read_table, why_unusable
from mechm.data.corpora.types import Corpus, CorpusReport, Probe, Problem, SpeechRecording
from mechm_runtime.errors import MediaError
from mechm_runtime.readers.text_file import quote

_SPELLINGS = {
    "anger": ("anger", "angry", "θυμος"),
    "fear": ("fear", "φοβος"),
    "joy": ("joy", "happiness", "happy", "χαρα"),
    "sadness": ("sadness", "sad", "λυπη", "θλιψη"),
    "neutral": ("neutral", "ουδετερο", "ουδετερη"),
}

AESI_EMOTIONS = {spelling: emotion for emotion, spellings in _SPELLINGS.items() for spelling in spellings}
"""The five states in English and Greek, in lower case and without accents."""

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".mp4", ".avi", ".mov")
"""Suffixes of recordings; AESI was recorded with microphones and cameras."""

_TABLE_HINT = "the table has the columns file, speaker, emotion"


def read_aesi(folder: Path, *, table: Path | None = None, probe: Probe | None = None) -> Corpus[SpeechRecording]:
    """Read the recordings of AESI, in the order of the label table.

    table: None for `labels.csv` in the folder.
    probe: opens each recording; None only checks that it exists and is not empty.
    Raises: InputError: the table is missing, or a row is malformed, has an unknown emotion, a path outside the folder,
        a name of several recordings, or a recording of an earlier row. MediaError: no recording can be used.
    """
    table = folder / "labels.csv" if table is None else table
    files = _Recordings(folder)
    recordings: list[SpeechRecording] = []
    problems: list[Problem] = []
    line_of: dict[Path, int] = {}
    for row in read_table(table, ("file", "speaker", "emotion"), delimiters=",;\t", hint=_TABLE_HINT):
        emotion, speaker, path = _emotion(row), row.values["speaker"].strip(), files.find(row)
        if not speaker:
            raise row.error("no speaker", hint="leave-one-speaker-out evaluation needs the speaker")
        if path is None:
            problems.append(Problem(row.values["file"].strip(), "missing"))
            continue
        if path in line_of:
            raise row.error(f"{path.name} is the recording of line {line_of[path]} already")
        line_of[path] = row.line
        reason = why_unusable(path, probe)
        if reason is None:
            recordings.append(SpeechRecording(path, speaker, emotion))
        else:
            problems.append(Problem(path.relative_to(folder).as_posix(), reason))
    if not recordings:
        first = f"; {problems[0].name}: {problems[0].reason}" if problems else ", since the table is empty"
        raise MediaError(f"{folder.name}: no recording of AESI can be used{first}", hint=_TABLE_HINT)
    n_unlabelled = len(files.paths) - len(line_of)
    left_out = {"recordings that the table does not name": n_unlabelled} if n_unlabelled else {}
    report = CorpusReport("AESI", len(recordings) + len(problems), len(recordings), tuple(problems), left_out)
    return Corpus(tuple(recordings), report)


class _Recordings:
    """Finds the recordings in a folder by relative path or by name."""

    def __init__(self, folder: Path) -> None:
        self.paths: list[Path] = []
        self._by_path: defaultdict[str, list[Path]] = defaultdict(list)
        self._by_name: defaultdict[str, list[Path]] = defaultdict(list)
        for parent, folders, names in os.walk(folder):
            folders.sort()
            for name in sorted(names):
                path = Path(parent, name)
                if path.suffix.lower() not in SUFFIXES or name.startswith("._"):  # macOS metadata files
                    continue
                self.paths.append(path)
                relative = path.relative_to(folder)
                for key in (relative.as_posix(), relative.with_suffix("").as_posix()):
                    self._by_path[key].append(path)
                for key in (name, path.stem):
                    self._by_name[key].append(path)

    def find(self, row: TableRow) -> Path | None:
        """Return the recording of a row, or None where there is none."""
        name = row.values["file"].strip().replace("\\", "/").removeprefix("./")
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise row.error(
                f"{quote(name)} is not a file below the folder", hint="give the path relative to the folder"
            )
        found = self._by_path.get(name) or self._by_name.get(name) or []
        if len(found) > 1:
            hint = "name the folder and the suffix too"
            raise row.error(f"{len(found)} recordings are called {quote(name)}", hint=hint)
        return found[0] if found else None


def _emotion(row: TableRow) -> str:
    label = row.values["emotion"].strip()
    parts = unicodedata.normalize("NFD", label.lower())
    plain = "".join(part for part in parts if not unicodedata.combining(part))
    if plain not in AESI_EMOTIONS:
        known = ", ".join(_SPELLINGS)
        raise row.error(f"unknown emotion {label[:24]!r}", hint=f"use one of {known}")
    return AESI_EMOTIONS[plain]
