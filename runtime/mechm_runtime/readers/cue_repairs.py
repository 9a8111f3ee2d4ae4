"""Repairs of a file's cues: text from below empty lines, times that run backwards, order and cues that stand twice.

Each kind of repair is counted and becomes one note.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from mechm_runtime.readers.cue_text import SpokenCue
from mechm_runtime.readers.repair_notes import counted

MAX_SWAPPED_S = 30.0
"""Longest cue in seconds whose start and end are taken for swapped; a longer one has a wrong digit somewhere."""


def repair_cues(cues: Sequence[SpokenCue]) -> tuple[list[SpokenCue], tuple[str, ...]]:
    """Cues in the order of their starts, none of which ends before it starts or stands twice; and notes."""
    swapped = dropped = 0
    forward: list[SpokenCue] = []
    for cue in cues:
        if cue.end_s >= cue.start_s:
            forward.append(cue)
        elif cue.start_s - cue.end_s <= MAX_SWAPPED_S:
            swapped += 1
            forward.append(replace(cue, start_s=cue.end_s, end_s=cue.start_s))
        else:
            dropped += 1
    late = sum(second.start_s < first.start_s for first, second in pairwise(forward))
    ordered = sorted(forward, key=lambda cue: cue.start_s)
    seen: set[tuple[float, float, tuple[tuple[str, str], ...]]] = set()
    once: list[SpokenCue] = []
    for cue in ordered:
        content = (cue.start_s, cue.end_s, tuple((line.voice, line.text) for line in cue.lines))
        if not cue.lines or content not in seen:
            once.append(cue)
        seen.add(content)
    return once, (
        *counted(swapped, "cue ended before it started: the two times were swapped", _SWAPPED),
        *counted(dropped, "cue ended long before it started and was left out", _DROPPED),
        *counted(late, "cue started before the one above it: cues were sorted by their start", _SORTED),
        *counted(len(ordered) - len(once), "cue stood twice and was read once", _TWICE),
    )


_SWAPPED = "cues ended before they started: their two times were swapped"
_DROPPED = "cues ended long before they started and were left out"
_SORTED = "cues started before the one above them: cues were sorted by their start"
_TWICE = "cues stood twice and were read once"
