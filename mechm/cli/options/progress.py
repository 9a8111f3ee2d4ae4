"""What long work shows: a bar on a terminal; in a log, a line about every minute of a training and one a step else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mechm.training.loop import StepReport

LINE_EVERY_S = 60.0


@contextmanager
def training_progress(*, shown: bool = True) -> Iterator[tuple[Callable[[StepReport], None], Callable[[str], None]]]:
    """Callbacks for a step and for a line beside it, both on stderr.

    shown: False for silence, in processes other than the main one.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not shown:
        yield lambda _: None, lambda _: None
    elif not console.is_terminal:
        yield StepLines(lambda line: click.echo(line, err=True)), lambda line: click.echo(line, err=True)
    else:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("loss {task.fields[loss]:.3f}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("training", loss=float("nan"), total=None)

            def on_step(report: StepReport) -> None:
                progress.update(task, completed=report.step, total=report.n_steps, loss=report.loss)

            def say(line: str) -> None:
                progress.console.print(line, highlight=False, soft_wrap=True)

            yield on_step, say


@contextmanager
def steps_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for the step that is running on a terminal, a line for each step elsewhere; both on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("")
        last = ""

        def on_progress(doing: str, done: int, total: int) -> None:
            nonlocal last
            if doing != last and not console.is_terminal:
                click.echo(doing, err=True)
            last = doing
            bars.update(task, description=doing, completed=done, total=total or None)

        yield on_progress


class TimedLines:
    """Lines that come about every minute.

    say: prints a line. every_s: seconds between lines. clock: seconds from any start.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        every_s: float = LINE_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say, self._every_s, self._clock = say, every_s, clock
        self._started = self._said = clock()

    def due(self) -> bool:
        """Whether it is time for the next line."""
        return self._clock() - self._said >= self._every_s

    def say(self, line: str) -> None:
        """Print a line now."""
        self._say(line)
        self._said = self._clock()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return max(self._clock() - self._started, 1e-9)


class StepLines(TimedLines):
    """Says how far a training is, about every minute and at its last step."""

    _steps = 0
    _utterances = 0
    _losses: tuple[float, ...] = ()

    def __call__(self, report: StepReport) -> None:
        """Count a step, and say a line when it is time: mean loss since the last one, speed since the start."""
        self._steps += 1
        self._utterances += report.utterances
        self._losses += (report.loss,)
        if not self.due() and report.step < report.n_steps:
            return
        # What was done before a resumption took no time of this process's, so only its own steps tell the speed.
        left_s = (report.n_steps - report.step) * self.seconds / self._steps
        self.say(
            f"step {report.step}/{report.n_steps} ({100 * report.step // report.n_steps} %): "
            f"loss {sum(self._losses) / len(self._losses):.3f}, lr {report.learning_rate:.1e}, "
            f"{self._utterances / self.seconds:.1f} utterances/s, {duration(left_s)} left"
        )
        self._losses = ()


def duration(seconds: float) -> str:
    """Seconds as people say them: `40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
