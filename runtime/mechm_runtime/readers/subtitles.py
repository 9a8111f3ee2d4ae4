"""SubRip (SRT) and WebVTT: cues become utterances.

The speaker comes from `<v Name>`, from `Name: text` or `[Name]: text`, and a line that starts with `- ` or `>>` is a
new speaker's, whose name is unknown (""). Two speakers of one cue share its times. `Name:` counts as a speaker only
where the file is written that way: three cues in four have one, or that name comes back; otherwise "Remember: no
cake" would be somebody called Remember.

Cue numbers and identifiers are not utterance ids: players ignore them, and so does this; utterances are numbered from
1. A cue without text stays, as an utterance of which only the sound is known. Starts must not go back from cue to cue
(WebVTT asks for that; in SRT it is the trace of a bad merge). Styling, regions, notes and cue settings are skipped;
what cannot be understood is an error, so that no text gets lost.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from mechm_runtime.readers.text_file import Draft, Row, Source, clean_text

_TIME = r"(?:([0-9]{1,4}):)?([0-9]{1,2}):([0-9]{1,2})(?:[.,]([0-9]{1,3}))?"
_TIME_LINE = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?")
_NUMBER_LINE = re.compile(r"\s*[0-9]{1,9}\s*")
_VOICE = re.compile(r"<v(?:\.[^\s<>]*)?[ \t\n]([^<>]*)>")
# WebVTT escapes "<" in text, so everything in angle brackets is a tag; SRT does not, so only known tags are.
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
    """Whether the first lines that are not empty are a cue's number and times, or its times."""
    first = [line for line in lines[:50] if line.strip()][:2]
    return any(_TIME_LINE.fullmatch(line) is not None for line in first)


def parse_srt(source: Source) -> tuple[Draft, ...]:
    """Read a SubRip file as one conversation.

    Raises: TranscriptError: no cues, text without times, or starts that go back.
    """
    return (_draft(source, _cues(source, source.lines(), first=0, webvtt=False), _KNOWN_TAG),)


def parse_webvtt(source: Source) -> tuple[Draft, ...]:
    """Read a WebVTT file as one conversation.

    Raises: TranscriptError: no signature, no cues, text without times, or starts that go back.
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
        # Text before the first times: a number or identifier, or, in SRT only, what follows a blank line in a cue.
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
                end -= 1  # the next cue's number, where the blank line between the two is missing
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
    """Runs of lines between blank ones, each with the index of its first line."""
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
    """The cue's voice spans (name or "", plain lines): tags gone, entities decoded."""
    payload = _POSITION.sub("", "\n".join(cue.payload))
    pieces = _VOICE.split(payload)  # text, name, text, name, text, …
    voices = [("", pieces[0]), *zip(map(html.unescape, pieces[1::2]), pieces[2::2], strict=True)]
    plain = [
        (clean_text(name), [line for line in html.unescape(tag.sub("", text)).split("\n") if line.strip()])
        for name, text in voices
    ]
    return [(name, lines) for name, lines in plain if name or lines]


def _named(line: str) -> tuple[str, str] | None:
    """The name and the words of a line that may be `Name: words`; None where it cannot be."""
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


def _unmarked(line: str) -> tuple[bool, str]:
    """Whether the line starts with a new speaker's mark, and the line without it."""
    mark = _TURN_MARK.match(line)
    return mark is not None, line[mark.end() :] if mark else line


def _speaker_names(parts: list[list[tuple[str, list[str]]]]) -> frozenset[str]:
    """The names that this file uses as speakers in `Name: words`."""
    counts: Counter[str] = Counter()
    n_cues = n_named = 0
    for voices in parts:
        lines = [_unmarked(line)[1] for voice, voice_lines in voices if not voice for line in voice_lines]
        found = [named[0] for named in map(_named, lines) if named is not None]
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
        marked, words = _unmarked(line)
        named = None if voice else _named(words)
        if named is not None and named[0] in names:
            turns.append((named[0], [named[1]]))
        elif not turns or (marked and not voice):
            turns.append((voice, [words]))
        else:
            turns[-1][1].append(words)
    return [(speaker, clean_text("\n".join(text))) for speaker, text in turns]
