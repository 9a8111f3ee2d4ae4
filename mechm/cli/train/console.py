"""Prints the events of a training: results on standard output; remarks, progress and errors on standard error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mechm.cli.options import progress
from mechm.cli.train.recordings import recordings_progress
from mechm.training.loop import EpochReport, OnEpoch, OnStep
from mechm.training.reporter import TrainingReporter
from mechm_runtime.system.progress import StageProgress


class ConsoleReporter(TrainingReporter):
    """Prints what a training reports."""

    def line(self, text: str) -> None:
        """Print a line about the data on standard error."""
        click.echo(text, err=True)

    def note(self, text: str) -> None:
        """Print a remark on standard error."""
        click.echo(f"note: {text}", err=True)

    @contextmanager
    def reading_recordings(self) -> Iterator[StageProgress]:
        """Show a bar on a terminal, else a line about every minute."""
        with recordings_progress() as on_recording:
            yield on_recording

    @contextmanager
    def training(self) -> Iterator[tuple[OnStep, OnEpoch]]:
        """Show a bar on a terminal, else a line about every minute; and a line per epoch."""
        with progress.training_progress() as (on_step, say):
            yield on_step, lambda report: say(epoch_line(report))

    def scores(self, split: str, scores: Mapping[str, Any], inputs: str) -> None:
        """Print a split's scores on one line."""
        click.echo(score_line(split, scores, inputs))

    def already_finished(self, out: Path) -> None:
        """Print that there is nothing to resume."""
        click.echo(f"the training in {out} is finished")

    def stopped(self, out: Path) -> None:
        """Print how to resume."""
        del out
        click.echo("\nstopped, and saved: the same command with --resume goes on", err=True)

    def written(self, out: Path) -> None:
        """Print where the result is."""
        click.echo(f"wrote {out}")


def epoch_line(report: EpochReport) -> str:
    """Format an epoch as one line."""
    scored = f", dev weighted F1 {report.dev_weighted_f1:.4f}, emotion accuracy {report.dev_emotion_accuracy:.4f}"
    return f"{report.stage} {report.epoch}: loss {report.loss:.3f}, {report.seconds:.0f} s" + (
        scored if report.dev_emotion_accuracy else ""
    )


def score_line(name: str, scores: Mapping[str, Any], inputs: str) -> str:
    """Format a split's scores in the card as one line; `inputs` names what they were computed from."""
    return (
        f"{name}: weighted F1 {scores['weighted_f1']:.4f}, micro F1 {scores['micro_f1']:.4f}, "
        f"emotion accuracy {scores['emotion_accuracy']:.4f} ({inputs})"
    )
