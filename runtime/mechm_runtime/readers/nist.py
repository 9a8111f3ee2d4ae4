"""NIST's STM (speaker, times and words) and RTTM (speaker and times).

STM: `file channel speaker start end [<label>] text`, comments after `;;`. RTTM: rows of type SPEAKER, `SPEAKER file
channel start duration ortho type speaker confidence lookahead`; its turns have no words. An STM holds everything that
the RTTM of the same recording does, so prefer the STM. Each recording named in the first field becomes one conversation
with all of its channels. Turns are sorted by start and numbered from 1: where people speak at the same time, starts in
the file may decrease.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mechm_runtime.readers.draft import Draft, Row
from mechm_runtime.readers.text_file import Source, clean_text, quote

_SECONDS = re.compile(r"[+-]?(?:[0-9]{1,12}(?:\.[0-9]*)?|\.[0-9]+)")
_LABEL = re.compile(r"<(?:[^<>\s]*,[^<>\s]*|o|na)>\s*", re.IGNORECASE)
_NOT_SPEECH = frozenset({"inter_segment_gap", "excluded_region"})
_NOT_SCORED = "ignore_time_segment_in_scoring"
_RTTM_ANNOTATIONS = ["SEGMENT", "NOSCORE", "NO_RT_METADATA", "LEXEME", "NON-LEX", "NON-SPEECH", "FILLER", "EDIT", "IP"]
_RTTM_TYPES = frozenset([*_RTTM_ANNOTATIONS, "SU", "CB", "A/P", "SPKR-INFO", "SPEAKER"])


def is_rttm(lines: list[str]) -> bool:
    """Whether the first row has one of RTTM's types and its nine or ten fields."""
    fields = _first_row(lines)
    return len(fields) in (9, 10) and fields[0] in _RTTM_TYPES


def is_stm(lines: list[str]) -> bool:
    """Whether the first row has times where STM has them."""
    fields = _first_row(lines)
    return len(fields) >= 5 and all(_SECONDS.fullmatch(field) for field in fields[3:5])


def parse_stm(source: Source) -> tuple[Draft, ...]:
    """Read an STM file: one conversation per recording.

    Raises: TranscriptError: a row with fewer than five fields or a time that is not one, or no turns.
    """
    rows: list[tuple[str, Row]] = []
    for number, line in enumerate(source.lines(), start=1):
        if not line.strip() or line.lstrip().startswith(";;"):
            continue
        where = f"line {number}"
        fields = line.split(None, 5)
        if len(fields) < 5:
            raise source.error("not a turn", where=where, hint="it is: file channel speaker start end [<label>] text")
        words = fields[5] if len(fields) == 6 else ""
        if label := _LABEL.match(words):
            words = words[label.end() :]
        if fields[2].lower() in _NOT_SPEECH or words.strip().lower() == _NOT_SCORED:
            continue
        start_s, end_s = (_seconds(source, field, where) for field in fields[3:5])
        rows.append((fields[0], Row(1, clean_text(fields[2]), clean_text(words), start_s, end_s, where)))
    return _drafts(source, rows)


def parse_rttm(source: Source) -> tuple[Draft, ...]:
    """Read an RTTM file: one conversation per recording, turns without words.

    Raises: TranscriptError: a row of an unknown type, with too few fields, a time that is not one or a negative
        duration, or no turns.
    """
    rows: list[tuple[str, Row]] = []
    for number, line in enumerate(source.lines(), start=1):
        fields = line.split()
        if not fields or line.lstrip().startswith(";;"):
            continue
        where = f"line {number}"
        if fields[0] not in _RTTM_TYPES:
            raise source.error(f"unknown row type {quote(fields[0])}", where=where, hint=_RTTM_HINT)
        if fields[0] != "SPEAKER":
            continue
        if len(fields) < 8:
            raise source.error("not a turn", where=where, hint=_RTTM_HINT)
        start_s, duration_s = (_seconds(source, field, where) for field in fields[3:5])
        if duration_s < 0:
            raise source.error("lasts less than nothing", where=where, hint=_RTTM_HINT)
        # Both have millisecond digits: rounding removes the digits below them that the sum adds.
        rows.append((fields[1], Row(1, clean_text(fields[7]), None, start_s, round(start_s + duration_s, 6), where)))
    return _drafts(source, rows)


_RTTM_HINT = "it is: SPEAKER file channel start duration <NA> <NA> speaker <NA> <NA>"


def _first_row(lines: Iterable[str]) -> list[str]:
    for line in lines:
        if line.strip() and not line.lstrip().startswith(";;"):
            return line.split()
    return []


def _seconds(source: Source, field: str, where: str) -> float:
    if _SECONDS.fullmatch(field) is None:
        raise source.error(f"{quote(field)} is not a number of seconds", where=where)
    return float(field)


def _drafts(source: Source, rows: list[tuple[str, Row]]) -> tuple[Draft, ...]:
    recordings: dict[str, list[Row]] = {}
    for recording, row in rows:
        recordings.setdefault(clean_text(recording), []).append(row)
    if not recordings:
        raise source.error("no turns")
    return tuple(Draft(recording, _numbered(turns)) for recording, turns in recordings.items())


def _numbered(rows: list[Row]) -> tuple[Row, ...]:
    ordered = sorted(rows, key=lambda row: row.start_s or 0.0)
    return tuple(
        Row(number, row.speaker, row.text, row.start_s, row.end_s, row.where)
        for number, row in enumerate(ordered, start=1)
    )
