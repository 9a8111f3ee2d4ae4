"""SubRip (SRT) and WebVTT: cues become utterances.

The speaker comes from `<v Name>`, `Name: text` or `[Name]: text`; a line that starts with `- ` or `>>` belongs to a new
speaker of unknown name (""). Two speakers of one cue share its times. `Name:` counts as a speaker only where three in
four cues of the file have one, or where that name occurs again; otherwise "Remember: no cake" would be said by somebody
called Remember.

Utterances are numbered from 1; cue numbers and identifiers are ignored, as players do. A cue without text becomes an
utterance without words. Starts must not decrease from cue to cue (WebVTT requires that; in SRT it shows a bad merge).
Styling, regions, notes and cue settings are skipped; a line that cannot be parsed is an error, so that no text gets
lost.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from mechm_runtime.readers.draft import Draft, Row
from mechm_runtime.readers.text_file import Source, clean_text

_TIME = r"(?:([0-9]{1,4}):)?([0-9]{1,2}):([0-9]{1,2})(?:[.,]([0-9]{1,3}))?"
_TIME_LINE = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?")
_NUMBER_LINE = re.compile(r"\s*[0-9]{1,9}\s*")
_VOICE = re.compile(r"<v(?:\.[^\s<>]*)?[ \t\n]([^<>]*)>")
# WebVTT escapes "<" in text, so everything in angle brackets is a tag; in SRT only known tags are.
_ANY_TAG = re.compile(r"</?[A-Za-z0-9][^<>]*>|</>")
_KNOWN_TAG = re.compile(r"</?(?:i|b|u|s|em|strong|font|span|c|v|lang|ruby|rt)(?:[\s.][^<>]*)?/?>", re.IGNORECASE)
_POSITION = re.compile(r"\{\\[^{}]*\}")
_TURN_MARK = re.compile(r"\s*(?:>>+\s*|[-–]\s+|[-–](?=[^\W\d_]|[\"'“‘¿¡(\[♪]))")
_NAME_CHARACTERS = 40
_NAME_MARKS = frozenset("_.'’-&#()")


@dataclass(frozen=True, slots=True)
class _Cue:
    line: int
    start_s: float
    end_s: float
    payload: list[str]


def is_webvtt(text: str) -> bool:
    """Whether the text starts with WebVTT's signature."""
    return re.match(r"WEBVTT(?:[ \t\r\n]|$)", text) is not None


def is_srt(lines: list[str]) -> bool:
    """Whether one of the first two lines that are not empty holds a cue's times."""
    first = [line for line in lines[:50] if line.strip()][:2]
    return any(_TIME_LINE.fullmatch(line) is not None for line in first)


def parse_srt(source: Source) -> tuple[Draft, ...]:
    """Read a SubRip file as one conversation.

    Raises: TranscriptError: no cues, text without times, or starts that decrease.
    """
    return (_draft(source, _cues(source, source.lines(), first=0, webvtt=False), _KNOWN_TAG),)


def parse_webvtt(source: Source) -> tuple[Draft, ...]:
    """Read a WebVTT file as one conversation.

    Raises: TranscriptError: no signature, no cues, text without times, or starts that decrease.
    """
    lines = source.lines()
    if not is_webvtt(source.text):
        raise source.error("no WEBVTT signature", where="line 1", hint="the first line of a WebVTT file is WEBVTT")
    first = 0
    while first < len(lines) and lines[first].strip() and "-->" not in lines[first]:
        first += 1  # the signature and the header lines below it
    return (_draft(source, _cues(source, lines, first=first, webvtt=True), _ANY_TAG),)


def _cues(source: Source, lines: list[str], *, first: int, webvtt: bool) -> list[_Cue]:
    cues: list[_Cue] = []
    for start, block in _blocks(lines, first):
        if webvtt and "-->" not in block[0] and re.match(r"(?:NOTE|STYLE|REGION)(?:\s|$)", block[0]):
            continue
        times = [index for index, line in enumerate(block) if "-->" in line]
        # Text before the first times: a number or identifier; in SRT also text after a blank line inside a cue.
        before = times[0] if times else len(block)
        if before and times:
            before -= 1 if webvtt or _NUMBER_LINE.fullmatch(block[before - 1]) else 0
        if before:
            if webvtt or not cues or _NUMBER_LINE.fullmatch(block[0]):
                raise source.error("a cue without its line of times", where=f"line {start + 1}", hint=_hint(webvtt))
            cues[-1].payload.extend(block[:before])
        for index, next_index in pairwise([*times, len(block)]):
            end = next_index
            if next_index < len(block) and next_index - index > 1 and _NUMBER_LINE.fullmatch(block[next_index - 1]):
                end -= 1  # the next cue's number, where no blank line separates the two
            start_s, end_s = _times(source, block[index], start + index + 1, webvtt)
            if cues and start_s < cues[-1].start_s:
                raise source.error(
                    f"starts at {start_s:.3f} s, before the cue above it at {cues[-1].start_s:.3f} s",
                    where=f"line {start + index + 1}",
                    hint="sort the cues by their start",
                )
            cues.append(_Cue(start + index + 1, start_s, end_s, block[index + 1 : end]))
    if not cues:
        raise source.error("no cues", hint=_hint(webvtt))
    return cues


def _hint(webvtt: bool) -> str:
    return f"a cue is a line 00:00:01{'.' if webvtt else ','}000 --> 00:00:02{'.' if webvtt else ','}500 and its text"


def _blocks(lines: list[str], first: int) -> Iterator[tuple[int, list[str]]]:
    """Runs of lines between blank lines, each with the index of its first line."""
    start = first
    for index in range(first, len(lines) + 1):
        if index == len(lines) or not lines[index].strip():
            if index > start:
                yield start, lines[start:index]
            start = index + 1


def _times(source: Source, line: str, number: int, webvtt: bool) -> tuple[float, float]:
    match = _TIME_LINE.fullmatch(line)
    if match is None:
        raise source.error("not a line of times", where=f"line {number}", hint=_hint(webvtt))
    values: list[float] = []
    for hours, minutes, seconds, fraction in (match.groups()[:4], match.groups()[4:]):
        if int(minutes) > 59 or int(seconds) > 59:
            raise source.error("minutes or seconds above 59", where=f"line {number}", hint=_hint(webvtt))
        milliseconds = int((fraction or "0").ljust(3, "0"))
        values.append((int(hours or 0) * 3_600_000 + int(minutes) * 60_000 + int(seconds) * 1000 + milliseconds) / 1000)
    return values[0], values[1]


def _draft(source: Source, cues: list[_Cue], tag: re.Pattern[str]) -> Draft:
    parts = [_voices(cue, tag) for cue in cues]
    names = _speaker_names(parts)
    rows: list[Row] = []
    for cue, voices in zip(cues, parts, strict=True):
        turns = [turn for voice, lines in voices for turn in _turns(voice, lines, names)]
        for speaker, text in [turn for turn in turns if turn[1]] or [(turns[0][0] if turns else "", "")]:
            rows.append(Row(len(rows) + 1, speaker, text, cue.start_s, cue.end_s, f"line {cue.line}"))
    return Draft(clean_text(source.path.stem) or "transcript", tuple(rows))


def _voices(cue: _Cue, tag: re.Pattern[str]) -> list[tuple[str, list[str]]]:
    """The cue's voice spans (name or "", plain lines), without tags and with entities decoded."""
    payload = _POSITION.sub("", "\n".join(cue.payload))
    pieces = _VOICE.split(payload)  # text, name, text, name, text, …
    voices = [("", pieces[0]), *zip(map(html.unescape, pieces[1::2]), pieces[2::2], strict=True)]
    plain = [
        (clean_text(name), [line for line in html.unescape(tag.sub("", text)).split("\n") if line.strip()])
        for name, text in voices
    ]
    return [(name, lines) for name, lines in plain if name or lines]


def _split_name(line: str) -> tuple[str, str] | None:
    """The name and the words of a line of the form `Name: words`; None for any other line."""
    head, colon, words = line.partition(":")
    if not colon or (words and not words[0].isspace()):
        return None
    name = head.strip()
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1].strip()
    parts = name.split()
    if not 0 < len(name) <= _NAME_CHARACTERS or len(parts) > 4 or not parts[0][0].isalpha():
        return None
    if any(part[0].islower() or not all(c.isalnum() or c in _NAME_MARKS for c in part) for part in parts):
        return None
    return clean_text(name), words


def _split_turn_mark(line: str) -> tuple[bool, str]:
    """Whether the line starts with the mark of a new speaker, and the line without the mark."""
    mark = _TURN_MARK.match(line)
    return mark is not None, line[mark.end() :] if mark else line


def _speaker_names(parts: list[list[tuple[str, list[str]]]]) -> frozenset[str]:
    """The names that this file uses as speakers in `Name: words`."""
    counts: Counter[str] = Counter()
    n_cues = n_named = 0
    for voices in parts:
        lines = [_split_turn_mark(line)[1] for voice, voice_lines in voices if not voice for line in voice_lines]
        found = [named[0] for named in map(_split_name, lines) if named is not None]
        counts.update(found)
        n_cues += bool(lines)
        n_named += bool(found)
    if n_named * 4 >= n_cues * 3:
        return frozenset(counts)
    return frozenset(name for name, count in counts.items() if count > 1)


def _turns(voice: str, lines: list[str], names: frozenset[str]) -> list[tuple[str, str]]:
    """The (speaker, text) turns in one voice span's lines."""
    turns: list[tuple[str, list[str]]] = []
    for line in lines:
        marked, words = _split_turn_mark(line)
        named = None if voice else _split_name(words)
        if named is not None and named[0] in names:
            turns.append((named[0], [named[1]]))
        elif not turns or (marked and not voice):
            turns.append((voice, [words]))
        else:
            turns[-1][1].append(words)
    return [(speaker, clean_text("\n".join(text))) for speaker, text in turns]
