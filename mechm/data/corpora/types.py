"""Result types of the corpus readers, in addition to `LabelledConversation`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

Item = TypeVar("Item")

Probe: TypeAlias = Callable[[Path], object]
"""Opens a recording and raises MediaError if it cannot be decoded: `MediaReader().probe`, about 3 ms per file."""


@dataclass(frozen=True, slots=True)
class SpeechRecording:
    """One recording of emotional speech."""

    path: Path
    speaker: str
    emotion: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A file of a corpus that is not used, with the reason.

    name: file name, or path relative to the corpus's folder.
    """

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class CorpusReport:
    """Summary of reading a corpus.

    n_items: utterances that were read, or recordings that the corpus lists. n_media: those with a usable recording.
    problems: files that should be usable and are not, in the order of the corpus.
    left_out: description of items that are left out by design -> their number.
    """

    corpus: str
    n_items: int
    n_media: int
    problems: tuple[Problem, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    def lines(self, *, max_problems: int = 10) -> tuple[str, ...]:
        """Format the report for the user, one line per item; at most `max_problems` problems are named."""
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
    """A corpus: `LabelledConversation`s or `SpeechRecording`s, and the report."""

    items: tuple[Item, ...]
    report: CorpusReport
