"""Interface through which a training reports to its user. The base class is silent; commands derive one that prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mechm.training.loop import OnEpoch, OnStep
from mechm_runtime.system.progress import StageProgress


class TrainingReporter:
    """Receives the events of a training and ignores them; called in the training's main process alone."""

    def line(self, text: str) -> None:
        """A line about the data that was read."""

    def note(self, text: str) -> None:
        """A remark that the user should know."""

    @contextmanager
    def reading_recordings(self) -> Iterator[StageProgress]:
        """Report progress while recordings are read."""
        yield lambda _done, _total: None

    @contextmanager
    def training(self) -> Iterator[tuple[OnStep, OnEpoch]]:
        """Report progress while weights are trained."""
        yield lambda _step: None, lambda _epoch: None

    def scores(self, split: str, scores: Mapping[str, Any], inputs: str) -> None:
        """Scores of a split, as `mechm.training.card.split_scores` returns them; `inputs` names what was scored."""

    def already_finished(self, out: Path) -> None:
        """The training to resume in `out` is complete."""

    def stopped(self, out: Path) -> None:
        """The training was interrupted and can be resumed from the checkpoint in `out`."""

    def written(self, out: Path) -> None:
        """The training is complete and its result is in `out`."""
