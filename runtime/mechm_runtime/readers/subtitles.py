"""SubRip (SRT) and WebVTT: cues become utterances.

The speaker comes from `<v Name>`, from identifiers of cues that recur, or from the start of a line (`speaker_names`);
a line that starts with `- ` or `>>` belongs to a new speaker of unknown name (""). Two speakers of one cue share its
times.

Utterances are numbered from 1 in the order of their starts; cue numbers are ignored, as players do. A cue without text
becomes an utterance without words. Styling, regions, notes and cue settings are skipped. Files that are not written as
the formats have it are repaired (`cues`, `cue_repairs`, `rolling_captions`), and each kind of repair is a note; text
that belongs to no cue is an error, so that no words get lost.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from mechm_runtime.readers.cue_repairs import repair_cues
from mechm_runtime.readers.cue_text import SpokenCue, SpokenLine, spoken_cue
from mechm_runtime.readers.cue_times import BadTimesError, parse_times
from mechm_runtime.readers.cues import Cue, CueFile, split_cues, times_hint
from mechm_runtime.readers.draft import Draft, Row
from mechm_runtime.readers.repair_notes import counted
from mechm_runtime.readers.rolling_captions import join_rolling
from mechm_runtime.readers.speaker_labels import speakers_of_labels
from mechm_runtime.readers.speaker_names import SpeakerNames, name_lines
from mechm_runtime.readers.text_file import Source, clean_text

_TURN_MARK = re.compile(r"\s*(?:>>+\s*|[-–]\s+|[-–](?=[^\W\d_]|[\"'“‘¿¡(\[♪]))")


def is_webvtt(text: str) -> bool:
    """Whether the text starts with WebVTT's signature."""
    return re.match(r"\s*WEBVTT(?:[ \t\r\n]|$)", text) is not None


def is_srt(lines: list[str]) -> bool:
    """Whether one of the first two lines that are not empty holds a cue's times."""
    first = [line for line in lines[:50] if line.strip()][:2]
    return any(_is_times(line) for line in first)


def parse_srt(source: Source) -> tuple[Draft, ...]:
    """Read a SubRip file as one conversation.

    Raises: TranscriptError: no cues, or text without times.
    """
    file = split_cues(source, source.lines(), first=0, webvtt=False)
    return (_draft(source, file, webvtt=False),)


def parse_webvtt(source: Source) -> tuple[Draft, ...]:
    """Read a WebVTT file as one conversation.

    Raises: TranscriptError: no signature, no cues, or text without times.
    """
    lines = source.lines()
    if not is_webvtt(source.text):
        raise source.error("no WEBVTT signature", where="line 1", hint="the first line of a WebVTT file is WEBVTT")
    first = next(index for index, line in enumerate(lines) if line.strip())
    while first < len(lines) and lines[first] and not _is_times(lines[first]):
        first += 1  # the signature and the header lines below it
    return (_draft(source, split_cues(source, lines, first=first, webvtt=True), webvtt=True),)


def _is_times(line: str) -> bool:
    try:
        return parse_times(line) is not None
    except BadTimesError:
        return False


def _draft(source: Source, file: CueFile, *, webvtt: bool) -> Draft:
    speakers, label_notes = speakers_of_labels([cue.label for cue in file.cues])
    if source.speaker_names == "none" or not any(speakers):
        speakers = [""] * len(file.cues)
        if not webvtt:
            _labels_are_text(source, file)
    notes = (
        *counted(
            file.irregular_times,
            "line of times was written in an unusual way",
            "lines of times were written in an unusual way",
        ),
        *counted(
            file.stray,
            "cue had text below an empty line, which was taken as its own",
            "cues had text below an empty line, which was taken as theirs",
        ),
    )
    spoken = [
        _with_speaker(spoken_cue(cue, webvtt=webvtt), name) for cue, name in zip(file.cues, speakers, strict=True)
    ]
    cues, repairs = repair_cues(spoken)
    if not cues:
        raise source.error("no cues whose times can be used", hint=times_hint(webvtt))
    cues, n_rolled = join_rolling(cues)
    rolled = counted(
        n_rolled,
        "repeated line of rolling captions was left out: each line is one utterance",
        "repeated lines of rolling captions were left out: each line is one utterance",
    )
    rows, name_notes = _rows(cues, source.speaker_names)
    name = clean_text(source.path.stem) or "transcript"
    return Draft(name, tuple(rows), notes=(*notes, *repairs, *rolled, *label_notes, *name_notes))


def _labels_are_text(source: Source, file: CueFile) -> None:
    """Take what stands above a cue of an SRT file, and is no number, as text of the cue above.

    Raises: TranscriptError: there is no cue above.
    """
    above: Cue | None = None
    for cue in file.cues:
        if cue.label:
            if above is None:
                raise source.error(
                    "a cue without its line of times", where=f"line {cue.line - 1}", hint=times_hint(False)
                )
            above.lines.append(cue.label)
            file.stray += 1
        above = cue


def _with_speaker(cue: SpokenCue, speaker: str) -> SpokenCue:
    """The cue with the speaker of its identifier for the lines that have none."""
    if not speaker:
        return cue
    return replace(cue, lines=tuple(line if line.voice else replace(line, voice=speaker) for line in cue.lines))


def _rows(cues: Sequence[SpokenCue], mode: SpeakerNames) -> tuple[list[Row], tuple[str, ...]]:
    """The utterances of the cues, and notes about the names in their lines."""
    marked = [[_split_turn_mark(line.text) for line in cue.lines if not line.voice] for cue in cues]
    voices = {line.voice for cue in cues for line in cue.lines if line.voice}
    n_voiced = sum(any(line.voice for line in cue.lines) for cue in cues)
    found = name_lines([[words for _, words in lines] for lines in marked], mode, voices=voices, n_voiced=n_voiced)
    rows: list[Row] = []
    for cue, marks, named in zip(cues, marked, found.cues, strict=True):
        unvoiced = [(mark, *line) for (mark, _), line in zip(marks, named, strict=True)]
        turns = _turns(cue.lines, unvoiced)
        for speaker, text in [turn for turn in turns if turn[1]] or [(turns[0][0] if turns else "", "")]:
            rows.append(Row(len(rows) + 1, speaker, text, cue.start_s, cue.end_s, f"line {cue.line}"))
    return rows, found.notes


def _split_turn_mark(line: str) -> tuple[bool, str]:
    """Whether the line starts with the mark of a new speaker, and the line without the mark."""
    mark = _TURN_MARK.match(line)
    return mark is not None, line[mark.end() :] if mark else line


def _turns(lines: Sequence[SpokenLine], unvoiced: Sequence[tuple[bool, str | None, str]]) -> list[tuple[str, str]]:
    """The (speaker, text) turns of a cue.

    unvoiced: of its lines without a voice (starts with a turn mark, speaker or None, words).
    """
    turns: list[tuple[str, list[str]]] = []
    rest = iter(unvoiced)
    for (_, voice), span in groupby(lines, key=lambda line: (line.span, line.voice)):
        is_new = True
        for line in span:
            mark, speaker, words = (False, voice, _split_turn_mark(line.text)[1]) if voice else next(rest)
            if is_new or mark or (speaker is not None and not voice):
                turns.append((speaker or "", [words]))
            else:
                turns[-1][1].append(words)
            is_new = False
    return [(speaker, clean_text("\n".join(text))) for speaker, text in turns]
