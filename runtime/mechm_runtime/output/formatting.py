"""Formats parts of an analysis as text: clock times, percentages, shortened quotes, printable characters.

Shared by `table`, `writers` and `report`, which do their own escaping for terminals, files and HTML.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping

from mechm_runtime.types import UtteranceAnalysis

NO_WORDS = "(words unknown)"
"""Text shown for an utterance without words."""

UNSURE = "unsure"
"""Label shown for an utterance for which the pipeline abstains."""


def printable(text: str) -> str:
    """`text` on one line, without characters that control a terminal or change the writing direction of a page.

    White space of any kind becomes one space; control and format characters (escape sequences, bidirectional
    overrides) and lone surrogates become U+FFFD. The zero-width joiner and non-joiner are kept, since some
    scripts and emoji need them.
    """
    kept = []
    for character in text:
        if character.isspace():
            kept.append(" ")
        elif character not in "\u200c\u200d" and unicodedata.category(character) in ("Cc", "Cf", "Cs"):
            kept.append("\ufffd")
        else:
            kept.append(character)
    return " ".join("".join(kept).split())


def words_of(utterance: UtteranceAnalysis) -> str:
    """The utterance's words on one line, or `NO_WORDS`."""
    return printable(utterance.text or "") or NO_WORDS


def speaker_of(utterance: UtteranceAnalysis) -> str:
    """The speaker's name on one line; "?" where it is unknown."""
    return printable(utterance.speaker) or "?"


def shorten(text: str, n_characters: int) -> str:
    """`text` cut to at most `n_characters` with an ellipsis, after a whole word or inside a very long one."""
    if len(text) <= n_characters:
        return text
    cut = text[: max(n_characters - 1, 0)]
    head, space, _ = cut.rpartition(" ")
    if text[len(cut)].isalnum() and space and len(head) >= n_characters // 2:
        cut = head
    return cut.rstrip(" ,;:.!?–-") + "…"


def shorten_names(names: Iterable[str], n_characters: int) -> dict[str, str]:
    """Names cut to `n_characters`, with as many more as it takes to tell them apart: name -> shown name.

    Where the beginnings are alike the end is kept: "Speaker 10" and "Speaker 12" become "Spea…10" and "Spea…12".
    """
    distinct = list(dict.fromkeys(names))
    for size in range(n_characters, max(map(len, distinct), default=0)):
        for n_last in (0, size // 4, size // 2):
            shown = {name: _cut_name(name, size, n_last) for name in distinct}
            if len(set(shown.values())) == len(distinct):
                return shown
    return {name: name for name in distinct}


def _cut_name(name: str, size: int, n_last: int) -> str:
    if len(name) <= size or n_last == 0:
        return shorten(name, size)
    return f"{name[: size - 1 - n_last].rstrip()}…{name[-n_last:].lstrip()}"


def clock(seconds: float) -> str:
    """Seconds as a clock time: 75.2 as "1:15", 3675 as "1:01:15"; rounded down, as players do."""
    minutes, second = divmod(int(max(seconds, 0.0)), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


def duration(seconds: float) -> str:
    """Seconds as a duration: "24 s", "3 min 05 s", "1 h 12 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, second = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {second:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def percent(probability: float) -> str:
    """A probability in [0, 1] as "83%"; only exactly 0 and 1 are shown as 0% and 100%."""
    if 0.0 < probability < 0.01:
        return "<1%"
    if 0.99 < probability < 1.0:
        return ">99%"
    return f"{probability:.0%}"


def count(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun: "1 pair", "3 pairs"; `many` where the plural is not `one` + s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def ranges(ids: Iterable[int]) -> str:
    """Increasing ids with consecutive ones as ranges: 1, 2, 3, 7 as "1-3, 7"."""
    runs: list[list[int]] = []
    for number in ids:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def strongest(utterance: UtteranceAnalysis) -> tuple[str, float]:
    """The most probable label and its probability, even for an abstention; ("", 0.0) without probabilities."""
    if not utterance.probabilities:
        return "", 0.0
    return max(utterance.probabilities.items(), key=lambda item: item[1])


def probability_of(utterance: UtteranceAnalysis) -> float:
    """The probability of the decided emotion, or of the most probable one where the pipeline abstains."""
    if utterance.emotion is None:
        return strongest(utterance)[1]
    return utterance.probabilities.get(utterance.emotion, 0.0)


def total_ms(timings_ms: Mapping[str, float]) -> float:
    """Milliseconds of the whole analysis: the stage "total" where it was measured, else the sum of all stages."""
    return timings_ms["total"] if "total" in timings_ms else sum(timings_ms.values())


def stages_text(timings_ms: Mapping[str, float], unit: str = "") -> str:
    """The stages with their times: "text 31, fusion 26"; says so where some ran at the same time. Empty without stages.

    unit: written after each time.
    """
    stages = {stage: ms for stage, ms in timings_ms.items() if stage != "total"}
    text = ", ".join(f"{printable(stage)} {ms:,.0f}{unit}" for stage, ms in stages.items())
    # Rounding to whole milliseconds alone may make the sum larger than the total.
    overlap = sum(stages.values()) > total_ms(timings_ms) + 1
    return f"{text}; some at the same time" if overlap else text
