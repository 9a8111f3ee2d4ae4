"""Rolling captions, as YouTube and live captioning write them: every line is shown two or three times.

A cue there repeats the last lines of the cue above and adds one, or lets the last line grow by a word; cues of 10 ms
stand in between. Such a file is recognised as a whole, and each line becomes one cue with the time in which it was
added. Lines that people really say twice stay in ordinary captions, and in rolling ones where a pause separates them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from mechm_runtime.readers.cue_text import SpokenCue, SpokenLine

FLASH_S = 0.05
"""Longest cue in seconds that only scrolls: YouTube's last 10 ms."""

MAX_GAP_S = 1.0
"""Longest pause in seconds in which a line stays on the screen."""

MIN_DOUBLED_LINES = 3
DOUBLED_SHARE = 0.8
"""In a file where at least this many and this share of lines stand in two cues on end, captions were doubled."""


def join_rolling(cues: Sequence[SpokenCue]) -> tuple[list[SpokenCue], int]:
    """One cue per line where a file's captions roll; else the cues as they are.

    cues: ordered by start. Returns: cues, and how many repeated lines were left out.
    """
    if not _rolls(cues):
        return list(cues), 0
    joined: list[SpokenCue] = []
    window: list[int] = []  # the lines on the screen, as indices of `joined`
    previous: SpokenCue | None = None
    n_repeated = 0
    for cue in cues:
        if not cue.lines:
            joined.append(cue)
            continue
        repeated = _repeated(previous, cue) if previous is not None else _Repeated(0, grown=False)
        window = window[len(window) - repeated.n_lines :]
        n_repeated += repeated.n_lines
        if repeated.n_lines:
            _extend(joined, window, cue, repeated, previous)
        for added in _split_times(cue, repeated.n_lines):
            window.append(len(joined))
            joined.append(added)
        previous = cue
    return sorted(joined, key=lambda cue: cue.start_s), n_repeated


@dataclass(frozen=True, slots=True)
class _Repeated:
    """Lines at the top of a cue that the cue above ended with. grown: the last of them has more words now."""

    n_lines: int
    grown: bool


def _rolls(cues: Sequence[SpokenCue]) -> bool:
    spoken = [cue for cue in cues if cue.lines]
    rolling = doubled = 0
    texts: set[str] = set()
    doubled_texts: set[str] = set()
    for first, second in pairwise(spoken):
        repeated = _repeated(first, second)
        texts.update(line.text for line in first.lines + second.lines)
        if not repeated.n_lines:
            continue
        if (
            repeated.grown
            or repeated.n_lines < len(second.lines)
            or min(_length_s(first), _length_s(second)) <= FLASH_S
        ):
            rolling += 1
        elif _lines(first) == _lines(second):
            doubled += 1
            doubled_texts.update(line.text for line in second.lines)
    n_pairs = len(spoken) - 1
    if rolling * 2 >= n_pairs and (rolling > 1 or (rolling and any(cue.word_times for cue in spoken))):
        return True
    return len(doubled_texts) >= MIN_DOUBLED_LINES and len(doubled_texts) >= DOUBLED_SHARE * len(texts)


def _repeated(first: SpokenCue, second: SpokenCue) -> _Repeated:
    above, below = _lines(first), _lines(second)
    if second.start_s - first.end_s > MAX_GAP_S:
        return _Repeated(0, grown=False)
    for n_lines in range(min(len(above), len(below), MAX_LINES), 0, -1):
        if above[-n_lines:] == below[:n_lines]:
            return _Repeated(n_lines, grown=False)
        (voice, text), (new_voice, new_text) = above[-1], below[n_lines - 1]
        if above[-n_lines:-1] == below[: n_lines - 1] and voice == new_voice and new_text.startswith(f"{text} "):
            return _Repeated(n_lines, grown=True)
    return _Repeated(0, grown=False)


MAX_LINES = 6
"""Lines compared between two cues; captions show at most four, and the bound keeps the time linear."""


def _extend(
    joined: list[SpokenCue], window: list[int], cue: SpokenCue, repeated: _Repeated, previous: SpokenCue | None
) -> None:
    """Let the last repeated line last longer where it was still being spoken."""
    last = joined[window[-1]]
    same = previous is not None and _lines(previous) == _lines(cue) and _length_s(cue) > FLASH_S
    if repeated.grown:
        grown = replace(last.lines[0], text=cue.lines[repeated.n_lines - 1].text)
        last = replace(last, lines=(grown,), end_s=max(last.end_s, cue.end_s))
    elif same or _length_s(last) <= FLASH_S:
        last = replace(last, end_s=max(last.end_s, cue.end_s))
    joined[window[-1]] = last


def _split_times(cue: SpokenCue, first: int) -> list[SpokenCue]:
    """A cue for each line from `first` on; they share the cue's time by their number of characters."""
    lines: tuple[SpokenLine, ...] = cue.lines[first:]
    total = sum(len(line.text) for line in lines)
    cues: list[SpokenCue] = []
    start_s, done = cue.start_s, 0
    for line in lines:
        done += len(line.text)
        end_s = cue.end_s if done == total else round(cue.start_s + _length_s(cue) * done / total, 3)
        cues.append(replace(cue, start_s=start_s, end_s=end_s, lines=(line,)))
        start_s = end_s
    return cues


def _lines(cue: SpokenCue) -> list[tuple[str, str]]:
    return [(line.voice, line.text) for line in cue.lines]


def _length_s(cue: SpokenCue) -> float:
    return cue.end_s - cue.start_s
