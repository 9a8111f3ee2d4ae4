"""Speakers' names at the start of lines, decided over a whole file.

`Name: words` is a speaker where the name recurs, or where most cues start with one; a name that is used once counts in
such a file. "At 10:30 it was over" and "I told him: never again" are no speakers. `name_heads` judges a single line.
Names in WebVTT's `<v Name>` are not looked for here; they are given, because they say how this file names people.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mechm_runtime.readers.name_heads import Head, Likeness, find_head
from mechm_runtime.readers.text_file import SpeakerNames

__all__ = ["NamedLines", "SpeakerNames", "name_lines"]

MOST = 0.75
"""Share of cues that have to start with a name where no name recurs."""

MOST_WITH_RECURRENCE = 0.5
"""Share above which most cues are named where at least one name recurs."""

SOME = 0.25
"""Share of named cues from which also words that look less like a name count where they recur."""

_SENTENCE_ENDS = tuple(".!?…。！？؟:：\"”»')]）】♪")


@dataclass(frozen=True, slots=True)
class NamedLines:
    """Lines with their speakers.

    cues: per cue and line of the input (speaker, words); speaker is None where the line names none.
    notes: sentences with counts about what stayed ambiguous; they quote nothing.
    """

    cues: tuple[tuple[tuple[str | None, str], ...], ...]
    notes: tuple[str, ...] = ()


def name_lines(
    cues: Sequence[Sequence[str]], mode: SpeakerNames = "auto", *, voices: Collection[str] = (), n_voiced: int = 0
) -> NamedLines:
    """Split the names of speakers off the lines of a file.

    cues: the lines of each cue or paragraph, without tags, time stamps and turn marks (`- `, `>>`). For a plain
        transcript each line is a cue of its own.
    mode: see `SpeakerNames`.
    voices: names that the file gives in another way, such as `<v Name>`. n_voiced: cues that have such a name and are
        not among `cues`. Where they are the majority, only those names count.

    Takes time linear in the number of characters.
    """
    if mode == "none":
        return NamedLines(tuple(tuple((None, line) for line in lines) for lines in cues))
    decision = _Decision(cues, mode, voices, n_voiced)
    return NamedLines(decision.named, decision.notes())


@dataclass(frozen=True, slots=True)
class _Place:
    """A head and where it stands."""

    cue: int
    line: int
    head: Head
    follows_open_sentence: bool


class _Decision:
    """Counts the heads of one file and decides which of them are names."""

    def __init__(
        self, cues: Sequence[Sequence[str]], mode: SpeakerNames, voices: Collection[str], n_voiced: int
    ) -> None:
        self._mode = mode
        self._places = _places(cues)
        self._counts = Counter(place.head.key for place in self._places)
        self._voices = frozenset(voice.casefold() for voice in voices)
        n_cues = sum(any(line.strip() for line in lines) for lines in cues)
        self._voiced = n_voiced > n_cues
        starts = {place.cue for place in self._places if place.line == 0 and self._may_start(place.head)}
        self._share = len(starts) / n_cues if n_cues else 0.0
        self._recurs = any(
            self._counts[place.head.key] > 1 and place.head.likeness >= Likeness.PLAIN for place in self._places
        )
        self._most = self._share >= MOST or (self._recurs and self._share > MOST_WITH_RECURRENCE)
        self._taken = {(place.cue, place.line): place for place in self._places if self._is_name(place)}
        self.named = tuple(
            tuple(self._named(cue, index, line) for index, line in enumerate(lines)) for cue, lines in enumerate(cues)
        )

    def _named(self, cue: int, index: int, line: str) -> tuple[str | None, str]:
        place = self._taken.get((cue, index))
        return (None, line) if place is None else (place.head.name, place.head.words)

    def _may_start(self, head: Head) -> bool:
        if head.likeness in (Likeness.WEAK, Likeness.NUMBER):
            return self._counts[head.key] > 1
        return head.likeness >= Likeness.PLAIN

    def _is_name(self, place: _Place) -> bool:
        head = place.head
        if self._mode == "prefix" and head.colon:
            return True
        if self._voices and head.key in self._voices:
            return True
        if self._voiced or head.likeness == Likeness.SENTENCE:
            return False
        recurs = self._counts[head.key] > 1
        if head.likeness == Likeness.WEAK:
            return recurs and self._most and len(self._counts) > 1
        if recurs and (head.likeness == Likeness.STRONG or self._share >= SOME):
            return True
        if head.likeness == Likeness.NUMBER and not self._recurs:
            return False  # "1: …", "2: …", "3: …" is a list
        return self._most and not (head.is_lower and place.follows_open_sentence)

    def notes(self) -> tuple[str, ...]:
        """What stayed ambiguous."""
        if self._mode != "auto" or self._voiced:
            return ()
        notes: list[str] = []
        taken = {place.head.key for place in self._taken.values()} - self._voices
        single = all(self._counts[key] == 1 for key in taken)
        if taken and self._share < 1 and (single or self._share < SOME):
            why = "none of them recurs" if single else "few lines have one"
            notes.append(
                f"{_count(len(taken), 'name')} at the start of lines {_were(len(taken))} read as speakers, though "
                f"{why}; `--speaker-names none` leaves them in the words"
            )
        left = sum(
            place.head.likeness >= Likeness.STRONG and place.head.colon and not place.head.is_lower
            for place in self._places
            if (place.cue, place.line) not in self._taken
        )
        if left:
            notes.append(
                f"{_count(left, 'line')} may start with a speaker's name before a colon, which was left in the words; "
                "`--speaker-names prefix` reads it as the speaker"
            )
        return tuple(notes)


def _places(cues: Sequence[Sequence[str]]) -> list[_Place]:
    """Every head of a file."""
    ends = [_ends_sentence(lines[-1]) for lines in cues if lines]
    punctuated = sum(ends) * 2 >= len(ends)
    places: list[_Place] = []
    previous = ""
    for cue, lines in enumerate(cues):
        for index, line in enumerate(lines):
            head = find_head(line)
            has_words = head is not None and (head.colon or bool(head.words.strip()) or index + 1 < len(lines))
            if head is not None and has_words:
                is_open = bool(previous.strip()) and not _ends_sentence(previous) and (punctuated or index > 0)
                places.append(_Place(cue, index, head, is_open))
            previous = line
    return places


def _ends_sentence(line: str) -> bool:
    return line.rstrip().endswith(_SENTENCE_ENDS)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _were(number: int) -> str:
    return "was" if number == 1 else "were"
