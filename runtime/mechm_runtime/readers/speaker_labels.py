"""Speakers' names in the identifiers of cues, as Zoom and some tools for diarization write them.

An identifier is meant to be unique, so identifiers that recur name somebody: `Speaker 1`, `2 "Ana Roe" (123456)`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from mechm_runtime.readers.name_heads import MAX_NAME_CHARACTERS
from mechm_runtime.readers.text_file import clean_text

_ZOOM = re.compile(r'[0-9]{1,9} "([^"]+)"(?: \([0-9]+\))?')
_NUMBERED = re.compile(r"([0-9]{1,9})(?:[.:)]| -|:)? +(?=\S)")
_MACHINE_ID = re.compile(r"[0-9a-fA-F-]{16,}(?:/.*)?|(?=.*[0-9])[0-9a-fA-F]{8,}")
_NO_NAMES = frozenset(
    ("cue", "caption", "captions", "subtitle", "subtitles", "segment", "text", "line", "intro", "outro")
)
MAX_DISTINCT_SHARE = 0.75
"""Different identifiers per labelled cue above which one that recurs is a mistake rather than a name."""


def speakers_of_labels(labels: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """The speakers that identifiers name.

    labels: the identifier of each cue; "" for a number or none.
    Returns: a name per cue, all of them "" where the identifiers are no names; and notes.
    """
    names = _names(labels)
    counts = Counter(name.casefold() for name in names if name)
    labelled = sum(counts.values())
    recurring = any(count > 1 for count in counts.values())
    zoom = all(_ZOOM.fullmatch(label) for label in labels if label)
    most = labelled * 2 > len(labels)
    if labelled and most and (zoom or (recurring and len(counts) <= MAX_DISTINCT_SHARE * labelled)):
        return names, ()
    note = "identifiers of cues recur and were not read as speakers, since few cues have one"
    return [""] * len(labels), (note,) if recurring and labelled else ()


def _names(labels: Sequence[str]) -> list[str]:
    numbers = [_NUMBERED.match(label) for label in labels if label]
    rising = [int(number[1]) for number in numbers if number is not None]
    numbered = len(rising) == len(numbers) and rising == sorted(set(rising)) and len(rising) > 1
    return [_name(label, numbered=numbered) for label in labels]


def _name(label: str, *, numbered: bool) -> str:
    zoom = _ZOOM.fullmatch(label)
    if zoom is not None:
        return clean_text(zoom[1])
    if numbered and (number := _NUMBERED.match(label)) is not None:
        label = label[number.end() :]
    label = label.rstrip(":： ").strip("\"'“”[]<>")
    usable = 0 < len(label) <= MAX_NAME_CHARACTERS and any(map(str.isalpha, label)) and not _MACHINE_ID.fullmatch(label)
    return label if usable and label.casefold() not in _NO_NAMES else ""
