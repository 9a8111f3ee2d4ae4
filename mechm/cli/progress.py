"""The bar that long trainings show, on a terminal only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def training_progress() -> Iterator[tuple[Callable[[int, int, float], None], Callable[[str], None]]]:
    """Callbacks for a step (step, steps in all, loss), a bar with loss and time left, and for a line beside the bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("loss {task.fields[loss]:.3f}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("training", loss=float("nan"), total=None)

        def on_step(step: int, n_steps: int, loss: float) -> None:
            progress.update(task, completed=step, total=n_steps, loss=loss)

        def say(line: str) -> None:
            progress.console.print(line, highlight=False, soft_wrap=True)

        yield on_step, say
