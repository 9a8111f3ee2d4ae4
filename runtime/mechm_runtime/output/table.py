"""Renders an analysis as a table for the terminal.

One row per utterance: id, time, speaker, words, emotion with its probability, the modalities that were used, causes.
Below the table: missing modalities with the reasons, and a summary line. Colours repeat the words and add nothing, so
that the table reads the same in a log. Nothing is printed here: the caller gets text.
"""

from __future__ import annotations

import os
import shutil
import sys
from io import StringIO
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.containers import Lines
from rich.table import Table
from rich.text import Text

from mechm_runtime.output.formatting import (
    NO_WORDS,
    UNSURE,
    clock,
    count,
    percent,
    printable,
    probability_of,
    ranges,
    shorten,
    shorten_names,
    speaker_of,
    stages_text,
    strongest,
    total_ms,
    words_of,
)
from mechm_runtime.types import EMOTIONS, MODALITIES, Analysis, UtteranceAnalysis

# The 16 basic colours follow the reader's own terminal theme, light or dark.
EMOTION_STYLES = {
    "neutral": "dim",
    "anger": "bold red",
    "disgust": "bold green",
    "fear": "bold magenta",
    "joy": "bold yellow",
    "sadness": "bold blue",
    "surprise": "bold cyan",
}
UNSURE_STYLE = "italic"
MISSING_STYLE = "red"

MODALITY_LETTERS = "".join(modality[0].upper() for modality in MODALITIES)
"""First letters of the modalities, in the order of `MODALITIES`; the heading of their column and its cells."""

MISSING_MARK, UNUSED_MARK = "×", "·"
"""Shown in place of a modality's letter where it is missing, or was not used."""

NARROW_COLUMNS = 100
"""Width from which on a row is one line; in narrower tables the words wrap over two lines."""

MIN_COLUMNS = 72

MAX_CAUSES = 3
"""Most causes named in a row, the most probable first; "+2" counts the others."""


def render_table(analysis: Analysis, width: int | None = None, *, colour: bool | None = None) -> str:
    """The table with its notes and summary, ending with a newline.

    width: in columns, at least 72; None for the terminal's, or 80 without a terminal.
    colour: with ANSI colours; None for colours where standard output is a terminal and NO_COLOR is not set.
    """
    if width is None:
        width = shutil.get_terminal_size((80, 24)).columns
    width = max(width, MIN_COLUMNS)
    if colour is None:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    console = Console(
        file=StringIO(),
        width=width,
        force_terminal=colour,
        color_system="standard" if colour else None,
        no_color=not colour,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
        _environ={},
    )
    with console.capture() as captured:
        console.print(_table(analysis, width))
        for note in _notes(analysis):
            console.print(note)
        console.print(_summary(analysis))
    # Rich pads cells to their column; a log needs no padding at the end of a line.
    return "".join(line.rstrip() + "\n" for line in captured.get().splitlines())


def _table(analysis: Analysis, width: int) -> Table:
    narrow = width < NARROW_COLUMNS
    ids = [utterance.id for utterance in analysis.utterances]
    timed = any(utterance.start_s is not None for utterance in analysis.utterances)
    times = [clock(u.start_s) if u.start_s is not None else "-" for u in analysis.utterances]
    names = shorten_names(map(speaker_of, analysis.utterances), 8 if narrow else 16)
    speakers = [names[speaker_of(u)] for u in analysis.utterances]
    causes = [_causes(analysis, utterance, narrow=narrow) for utterance in analysis.utterances]

    columns: list[tuple[str, int, Literal["left", "right"]]] = [
        ("#", len(str(max(ids))), "right"),
        ("time", max(4, *map(len, times)), "right"),
        ("speaker", max(7, *map(cell_len, speakers)), "left"),
        ("text", 0, "left"),
        ("emotion", 12 if narrow else 13, "left"),
        (MODALITY_LETTERS, len(MODALITIES), "left"),
        ("causes", max(6, *(cell_len(line) for cause in causes for line in cause.plain.split("\n"))), "left"),
    ]
    if not timed:
        del columns[1]
    # The words get the width that the other columns and the gaps of two leave, as far as they need it.
    room = max(width - sum(size for _, size, _ in columns) - 2 * (len(columns) - 1), 12)
    words = [_fit(words_of(u), room, n_lines=2 if narrow else 1) for u in analysis.utterances]
    room = max(4, *(cell_len(line) for text in words for line in text.plain.split("\n")))

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    for name, size, justify in columns:
        table.add_column(name, justify=justify, width=size or room, no_wrap=True)
    for utterance, time, speaker, text, cause in zip(analysis.utterances, times, speakers, words, causes, strict=True):
        row = [Text(str(utterance.id)), Text(time, style="dim"), Text(speaker), text, _emotion(utterance)]
        if not timed:
            del row[1]
        table.add_row(*row, _modalities(utterance), cause)
    return table


def _fit(words: str, width: int, *, n_lines: int) -> Text:
    """`words` in at most `n_lines` lines of `width` terminal cells, cut with an ellipsis."""
    text = Text(words, style="dim italic" if words == NO_WORDS else "")
    if n_lines == 1:
        text.truncate(width, overflow="ellipsis")
        return text
    lines = text.wrap(Console(file=StringIO(), width=width), width)
    if len(lines) > n_lines:
        lines = Lines([*lines[: n_lines - 1], Text(" ").join(lines[n_lines - 1 :])])
        lines[-1].truncate(width, overflow="ellipsis")
    return Text("\n").join(lines)


def _emotion(utterance: UtteranceAnalysis) -> Text:
    probability = percent(probability_of(utterance))
    if utterance.emotion is None:
        return Text(f"{UNSURE} {probability}", style=UNSURE_STYLE)
    return Text(f"{utterance.emotion} {probability}", style=EMOTION_STYLES.get(utterance.emotion, ""))


def _modalities(utterance: UtteranceAnalysis) -> Text:
    text = Text()
    for modality, letter in zip(MODALITIES, MODALITY_LETTERS, strict=True):
        if modality in utterance.modalities:
            text.append(letter)
        elif modality in utterance.missing:
            text.append(MISSING_MARK, style=MISSING_STYLE)
        else:
            text.append(UNUSED_MARK, style="dim")
    return text


def _causes(analysis: Analysis, utterance: UtteranceAnalysis, *, narrow: bool) -> Text:
    pairs = sorted(analysis.causes_of(utterance.id), key=lambda pair: -pair.probability)
    if not pairs:
        return Text()
    parts = [f"{'self' if p.cause_utterance == p.emotion_utterance else p.cause_utterance}" for p in pairs]
    shown = [f"{part} {percent(pair.probability)}" for part, pair in zip(parts, pairs, strict=True)][:MAX_CAUSES]
    if len(pairs) > MAX_CAUSES:
        shown[-1] += f" +{len(pairs) - MAX_CAUSES}"
    separator = "\n← " if narrow else ", "
    return Text("← " + separator.join(shown), style=EMOTION_STYLES.get(pairs[0].emotion, ""))


def _notes(analysis: Analysis) -> list[Text]:
    notes = []
    reasons: dict[tuple[str, str], list[int]] = {}
    for utterance in analysis.utterances:
        for modality, reason in utterance.missing.items():
            reasons.setdefault((modality, printable(reason)), []).append(utterance.id)
    for (modality, reason), ids in reasons.items():
        note = Text(MISSING_MARK, style=MISSING_STYLE)
        note.append(f" {modality} missing", style="default")
        note.append(f" in {_which(ids, analysis)}: {reason}", style="default")
        notes.append(note)
    unsure = [utterance for utterance in analysis.utterances if utterance.emotion is None]
    if unsure:
        guesses = ", ".join(f"{u.id} {label}" for u in unsure[:6] if (label := strongest(u)[0]))
        note = Text(UNSURE, style=UNSURE_STYLE)
        note.append(f": no emotion is likely enough to name (nearest: {guesses}{', …' if len(unsure) > 6 else ''})")
        notes.append(note)
    return notes


def _which(ids: list[int], analysis: Analysis) -> str:
    if len(ids) == len(analysis.utterances):
        return "every utterance"
    return shorten(ranges(ids), 40)


def _summary(analysis: Analysis) -> Text:
    speakers = {utterance.speaker for utterance in analysis.utterances if utterance.speaker}
    emotional = sum(utterance.emotion not in (None, EMOTIONS[0]) for utterance in analysis.utterances)
    text = Text(f"{count(len(analysis.pairs), 'pair')} found", style="bold")
    details = [count(len(analysis.utterances), "utterance")]
    if speakers:
        details.append(count(len(speakers), "speaker"))
    details.append(f"{emotional} with an emotion")
    text.append(" in " + ", ".join(details))
    if analysis.timings_ms:
        stages = stages_text(analysis.timings_ms)
        text.append(f" · {total_ms(analysis.timings_ms):,.0f} ms" + (f" ({stages})" if stages else ""), style="dim")
    if analysis.late_ms:
        text.append(f" · {analysis.late_ms:,.0f} ms after the deadline", style=MISSING_STYLE)
    text.append(f" · bundle {shorten(printable(analysis.bundle_id), 24)}", style="dim")
    return text
