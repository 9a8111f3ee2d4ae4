"""Splits the lines of an SRT or WebVTT file into cues: identifier, times and lines of text.

A line of times starts a cue, and an empty line ends it. Text below an empty line that belongs to no cue is taken as
text of the cue above and counted; text above the first cue is an error, so that no words get lost. WebVTT's NOTE,
STYLE and REGION blocks are skipped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mechm_runtime.readers.cue_times import BadTimesError, CueTimes, parse_times
from mechm_runtime.readers.text_file import Source

_NUMBER = re.compile(r"\s*\ufeff?[0-9]{1,9}[.:)]?\s*")
_BLOCK = re.compile(r"(?:NOTE|STYLE|REGION)(?:\s|$)")
_HALF_TIMES = re.compile(r"\s*(?:[0-9]{1,4}:)?[0-9]{1,2}:[0-9]{1,2}[.,:][0-9]{1,3}\s*")


@dataclass(slots=True)
class Cue:
    """One cue of a file, before its text is interpreted.

    line: of its times, from 1. label: identifier above the times; "" for a number or none. lines: its text.
    """

    line: int
    start_s: float
    end_s: float
    label: str = ""
    lines: list[str] = field(default_factory=list)


@dataclass(slots=True)
class CueFile:
    """The cues of one file in its order, with counts of what was not written as the format has it.

    irregular_times: lines of times. stray: cues that got text from below an empty line.
    """

    cues: list[Cue]
    irregular_times: int = 0
    stray: int = 0


def split_cues(source: Source, lines: list[str], *, first: int, webvtt: bool) -> CueFile:
    """Split lines into cues.

    first: index of the first line below a WebVTT header; 0 for SRT.
    Raises: TranscriptError: no cues, text above the first one, or a line of times that cannot be read.
    """
    times = {index: found for index in range(first, len(lines)) if (found := _times(source, lines, index, webvtt))}
    if webvtt:
        lines = _without_blocks(lines, first, times)
    at = sorted(times)
    labels = {index: _label_index(lines, index, first, times) for index in at}
    _require_no_text(source, lines[first : labels[at[0]] if at else len(lines)], first, webvtt)
    if not at:
        raise source.error("no cues", hint=times_hint(webvtt))
    file = CueFile([], irregular_times=sum(found.irregular for found in times.values()))
    for position, index in enumerate(at):
        stop = labels[at[position + 1]] if position + 1 < len(at) else len(lines)
        label = "" if labels[index] == index else lines[labels[index]].strip()
        cue = Cue(index + 1, times[index].start_s, times[index].end_s, "" if _NUMBER.fullmatch(label) else label)
        file.stray += _fill(source, cue, lines, index + 1, stop, webvtt=webvtt)
        file.cues.append(cue)
    return file


def times_hint(webvtt: bool) -> str:
    """How a cue is written."""
    point = "." if webvtt else ","
    return f"a cue is a line 00:00:01{point}000 --> 00:00:02{point}500 and its text"


def _times(source: Source, lines: list[str], index: int, webvtt: bool) -> CueTimes | None:
    try:
        return parse_times(lines[index])
    except BadTimesError as error:
        raise source.error(str(error), where=f"line {index + 1}", hint=times_hint(webvtt)) from None


def _without_blocks(lines: list[str], first: int, times: dict[int, CueTimes]) -> list[str]:
    """The lines with WebVTT's NOTE, STYLE and REGION blocks emptied; a line of times ends a block, too."""
    kept = list(lines)
    inside = False
    for index in range(first, len(lines)):
        starts = index == first or not lines[index - 1]
        inside = bool(lines[index]) and index not in times and (inside or (starts and bool(_BLOCK.match(lines[index]))))
        if inside:
            kept[index] = ""
    return kept


def _label_index(lines: list[str], index: int, first: int, times: dict[int, CueTimes]) -> int:
    """Index of a cue's first line: its number or identifier, or the line of times itself where it has none."""
    above = index - 1
    if above < first:
        return index
    if lines[above].strip() and above not in times:
        number = _NUMBER.fullmatch(lines[above]) is not None
        starts_block = above == first or not lines[above - 1].strip()
        return above if starts_block or (number and above - 1 not in times) else index
    while above > first and not lines[above].strip():
        above -= 1
    # A number by itself, where every line of the file is followed by an empty one.
    alone = above == first or not lines[above - 1].strip()
    return (
        above if alone and _NUMBER.fullmatch(lines[above]) and not _is_only_text(lines, above, first, times) else index
    )


def _is_only_text(lines: list[str], index: int, first: int, times: dict[int, CueTimes]) -> bool:
    """Whether nothing but empty lines stands between a line and the line of times above it."""
    above = index - 1
    while above >= first and not lines[above].strip():
        above -= 1
    return above in times


def _require_no_text(source: Source, lines: list[str], first: int, webvtt: bool) -> None:
    for number, line in enumerate(lines, start=first + 1):
        if line.strip():
            raise source.error("a cue without its line of times", where=f"line {number}", hint=times_hint(webvtt))


def _fill(source: Source, cue: Cue, lines: list[str], start: int, stop: int, *, webvtt: bool) -> bool:
    """Give a cue its lines; returns whether some of them stand below an empty line."""
    ended = stray = False
    for index in range(start, stop):
        # WebVTT ends a cue at an empty line; one that holds a space does not end it.
        blank = not lines[index] if webvtt else not lines[index].strip()
        if blank:
            ended = True
        elif lines[index].strip():
            next_line = lines[index + 1] if index + 1 < stop else ""
            if ended and _NUMBER.fullmatch(lines[index]) and _HALF_TIMES.fullmatch(next_line):
                raise source.error(
                    "a cue without its line of times", where=f"line {index + 1}", hint=times_hint(webvtt)
                )
            stray |= ended
            cue.lines.append(lines[index])
    return stray
