"""The line of times of a caption: `00:00:01,000 --> 00:00:02,500`, also as tools and people miswrite it.

Read are missing hours, a comma, point, colon or semicolon before the fraction, fractions of one to nine digits (of a
second: `,5` is half a second), spaces inside of times, other arrows, and settings behind the times.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_REGULAR = re.compile(
    r"\s*(?:[0-9]{1,4}:)?[0-9]{1,2}:[0-9]{1,2}(?:[.,][0-9]{1,3})?\s*-->"
    r"\s*(?:[0-9]{1,4}:)?[0-9]{1,2}:[0-9]{1,2}(?:[.,][0-9]{1,3})?(?:\s.*)?"
)
_GAP = r"[ \t\u00a0]{0,3}"
_TIME = (
    rf"(?:([0-9]{{1,4}}){_GAP}[:;]{_GAP})?([0-9]{{1,2}}){_GAP}[:;]{_GAP}([0-9]{{1,2}})"
    rf"(?:{_GAP}(?:[.,;]{_GAP}([0-9]{{0,9}})|:{_GAP}([0-9]{{3}})))?"
)
_ARROW = re.compile(r"[-–—−=](?:[ \t\u00a0]?[-–—−=]){0,3}[ \t\u00a0]?(?:[>›»]|&gt;)|[→⟶⇒]")
_START = re.compile(_TIME)
_END = re.compile(rf"{_TIME}(?![0-9:])")
_LIKE_A_TIME = re.compile(r"[0-9]{1,4}\s?[:;]\s?[0-9]")
MAX_TIME_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class CueTimes:
    """Start and end of a cue in seconds. irregular: not written as the format has it."""

    start_s: float
    end_s: float
    irregular: bool


class BadTimesError(ValueError):
    """A line of times that cannot be read; the message says why."""


def parse_times(line: str) -> CueTimes | None:
    """The times of a cue, or None where the line is no line of times. Takes linear time.

    Raises: BadTimesError: it starts as one and does not go on as one, or has minutes or seconds above 59.
    """
    arrow = _ARROW.search(line[:MAX_TIME_CHARACTERS])
    if arrow is None:
        return None
    before, after = line[: arrow.start()].strip(), line[arrow.end() :].lstrip()[:MAX_TIME_CHARACTERS]
    start, end = _START.fullmatch(before), _END.match(after)
    proper = arrow.group() == "-->"
    if start is None or end is None:
        if proper and (not before or _LIKE_A_TIME.match(before) or _LIKE_A_TIME.match(after)):
            raise BadTimesError("not a line of times")
        return None  # an arrow in somebody's words
    if not proper and not (start[1] or start[4] or start[5]):
        return None  # so may be "12:30 -> 13:00"
    return CueTimes(_seconds(start), _seconds(end), _REGULAR.fullmatch(line) is None)


def _seconds(time: re.Match[str]) -> float:
    hours, minutes, seconds, *fractions = time.groups()
    if int(minutes) > 59 or int(seconds) > 59:
        raise BadTimesError("minutes or seconds above 59")
    fraction = next((digits for digits in fractions if digits), "0")
    # Whole milliseconds first, so that a time does not depend on how its hours and seconds add up as floats.
    milliseconds = (int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds)) * 1000
    if len(fraction) <= 3:
        return (milliseconds + int(fraction.ljust(3, "0"))) / 1000
    return round(milliseconds / 1000 + float(f"0.{fraction}"), 6)
