"""Progress of long work, on standard error: a bar on a terminal, lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress

    from mechm.training.loop import StepReport
    from mechm_runtime.llm.rescoring import Llm
    from mechm_runtime.types import Conversation

LINE_EVERY_S = 60.0
STAGE_COSTS = {"text": 1, "media": 10, "fusion": 1, "llm": 10}
"""The pipeline's stages in their order, with the time per utterance in each, roughly and in proportion."""


@contextmanager
def training_progress(*, shown: bool = True) -> Iterator[tuple[Callable[[StepReport], None], Callable[[str], None]]]:
    """Show a training's progress: a bar, or a line about every minute in a log.

    shown: False in processes other than the main one, which stay silent.
    Yields: a callback per training step, and one that prints a line beside the bar.
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
    """Show the step that is running: a bar on a terminal, one line per step in a log.

    Yields: a callback (name of the step, number done, total or 0 if unknown).
    """
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


@contextmanager
def utterance_progress(n_utterances: int) -> Iterator[Callable[[int], None]]:
    """Show how many utterances are analysed, on a terminal only.

    Yields: a callback that is told the number of utterances just done.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    counted = (BarColumn(), MofNCompleteColumn(), TextColumn("utterances"), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), *counted)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("Analysing", total=n_utterances)
        yield lambda n_done: progress.advance(task, n_done)


class TimedLines:
    """A clock for log lines about once a minute.

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
    """Prints a training's progress about once a minute and at its last step."""

    _steps = 0
    _utterances = 0
    _losses: tuple[float, ...] = ()

    def __call__(self, report: StepReport) -> None:
        """Count a step, and print a line when one is due: mean loss since the last line, speed since the start."""
        self._steps += 1
        self._utterances += report.utterances
        self._losses += (report.loss,)
        if not self.due() and report.step < report.n_steps:
            return
        # Steps from before a resumption took no time of this process, so only its own steps give the speed.
        left_s = (report.n_steps - report.step) * self.seconds / self._steps
        self.say(
            f"step {report.step}/{report.n_steps} ({100 * report.step // report.n_steps} %): "
            f"loss {sum(self._losses) / len(self._losses):.3f}, lr {report.learning_rate:.1e}, "
            f"{self._utterances / self.seconds:.1f} utterances/s, {duration(left_s)} left"
        )
        self._losses = ()


class AnalysisProgress:
    """A progress bar over all conversations, on standard error and only if that is a terminal.

    It counts each utterance once per stage, so that it also moves inside a long conversation.
    """

    def __init__(
        self, conversations: Sequence[Conversation], modalities: Sequence[str], llm: Llm, *, hidden: bool
    ) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._shown = console.is_terminal and not hidden
        self._progress: Progress = Progress(*columns, console=console, transient=True, disable=not self._shown)
        self._with_text = "text" in modalities
        self._with_llm = llm != "none"
        self._with_media = tuple(modalities) != ("text",)
        self._n_conversations = len(conversations)
        self._n_begun = 0
        self._end = 0
        total = sum(sum(self._stages(conversation).values()) for conversation in conversations)
        self._task = self._progress.add_task("Analysing", total=total)

    def __enter__(self) -> AnalysisProgress:
        if self._shown:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._progress.stop()

    def begin(self, conversation: Conversation) -> Callable[[str, int, int], None]:
        """Start the next conversation; returns the callback that the pipeline reports to."""
        stages = self._stages(conversation)
        start = self._end
        self._end += sum(stages.values())
        self._n_begun += 1
        where = f" {self._n_begun} of {self._n_conversations}" if self._n_conversations > 1 else ""
        self._progress.update(self._task, completed=start, description=f"Analysing{where}")

        def report(stage: str, n_done: int, n_total: int) -> None:
            if stage in stages:
                names = list(stages)
                before = sum(stages[name] for name in names[: names.index(stage)])
                self._progress.update(self._task, completed=start + before + stages[stage] * n_done / max(n_total, 1))

        return report

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Hide the bar while something is printed, since both may go to the same terminal."""
        if self._shown:
            self._progress.stop()
        try:
            yield
        finally:
            if self._shown:
                self._progress.start()

    def _stages(self, conversation: Conversation) -> dict[str, int]:
        """Units of the bar per stage that this conversation goes through."""
        has_media = conversation.media is not None or any(u.media is not None for u in conversation.utterances)
        stages = dict(STAGE_COSTS)
        if not self._with_text:
            del stages["text"]
        if not (self._with_media and has_media):
            del stages["media"]
        if not self._with_llm:
            del stages["llm"]
        return {stage: units * len(conversation.utterances) for stage, units in stages.items()}


def duration(seconds: float) -> str:
    """A duration in words: `40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
