"""What readers of corpora return beside `LabelledConversation`. It reads nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

Item = TypeVar("Item")

Probe: TypeAlias = Callable[[Path], object]
"""Opens a recording and raises MediaError where it cannot be decoded: `MediaReader().probe`, about 3 ms a file."""


@dataclass(frozen=True, slots=True)
class SpeechRecording:
    """One recording of emotional speech."""

    path: Path
    speaker: str
    emotion: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One file of a corpus that is not used, and why.

    name: the file's name, or its place below the corpus's folder.
    """

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class CorpusReport:
    """What reading a corpus came to: the last thing to show, since no single file stops the reading.

    n_items: utterances that were read, or recordings that the corpus names. n_media: those with a recording that can be
        used.
    problems: files that should be usable and are not, in the order of the corpus.
    left_out: what was left out by design -> how often.
    """

    corpus: str
    n_items: int
    n_media: int
    problems: tuple[Problem, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    def lines(self, *, max_problems: int = 10) -> tuple[str, ...]:
        """The report for people, a line each; of the problems the first `max_problems` by name."""
        shown = [f"  {problem.name}: {problem.reason}" for problem in self.problems[:max_problems]]
        n_hidden = len(self.problems) - len(shown)
        return (
            f"{self.corpus}: {self.n_items} read, {self.n_media} with a recording",
            *(f"  left out: {count} {what}" for what, count in self.left_out.items()),
            *([f"  not used: {len(self.problems)} files"] if self.problems else []),
            *shown,
            *([f"  … and {n_hidden} more"] if n_hidden else []),
        )


@dataclass(frozen=True, slots=True)
class Corpus(Generic[Item]):
    """A corpus as it was read: `LabelledConversation`s or `SpeechRecording`s, and the report."""

    items: tuple[Item, ...]
    report: CorpusReport
