"""How a fetch tells what it does: bars on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichBars
    from rich.progress import TaskID

POLL_S = 0.2
LINE_EVERY_S = 10.0


class Progress(Protocol):
    """What `fetch_weights` reports to. Called from several threads."""

    def start(self, part: str, doing: str, total_bytes: int | None) -> None:
        """A download (bytes known) or a conversion (None) of a part begins."""

    def advance(self, part: str, done_bytes: int) -> None:
        """So many bytes of the part are there."""

    def finish(self, part: str, result: str) -> None:
        """The part's current work is done; `result` is one line."""

    def note(self, line: str) -> None:
        """Something the user should know, for example that the hub cannot be reached."""


class Silent:
    """Reports nothing."""

    def start(self, part: str, doing: str, total_bytes: int | None) -> None:
        """Nothing."""

    def advance(self, part: str, done_bytes: int) -> None:
        """Nothing."""

    def finish(self, part: str, result: str) -> None:
        """Nothing."""

    def note(self, line: str) -> None:
        """Nothing."""


class Lines:
    """One line when something begins, every ten seconds of a download, and when something ends."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._totals: dict[str, int | None] = {}
        self._last_line_s: dict[str, float] = {}

    def start(self, part: str, doing: str, total_bytes: int | None) -> None:
        """A line that it begins."""
        self._totals[part] = total_bytes
        self._last_line_s[part] = time.monotonic()
        size = "" if total_bytes is None else f" ({megabytes(total_bytes)})"
        self._write(f"{part}: {doing}{size}")

    def advance(self, part: str, done_bytes: int) -> None:
        """A line, if the last one is long ago."""
        now = time.monotonic()
        total = self._totals.get(part)
        if total and now - self._last_line_s[part] >= LINE_EVERY_S:
            self._last_line_s[part] = now
            self._write(f"{part}: {megabytes(done_bytes)} of {megabytes(total)}")

    def finish(self, part: str, result: str) -> None:
        """A line with the result."""
        self._write(f"{part}: {result}")

    def note(self, line: str) -> None:
        """The line."""
        self._write(line)


class Bars:
    """A bar a part, with rich."""

    def __init__(self, console: Console, bars: RichBars) -> None:
        self._console = console
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._totals: dict[str, int | None] = {}

    def start(self, part: str, doing: str, total_bytes: int | None) -> None:
        """A new bar, or the part's bar with another description; a pulse where the size is unknown."""
        description = f"{part}: {doing}"
        if part not in self._tasks:
            self._tasks[part] = self._bars.add_task(description, total=total_bytes, size="")
        else:
            self._bars.reset(self._tasks[part], description=description, total=total_bytes, size="")
        self._totals[part] = total_bytes

    def advance(self, part: str, done_bytes: int) -> None:
        """Move the bar."""
        total = self._totals[part]
        size = "" if total is None else f"{megabytes(done_bytes)} of {megabytes(total)}"
        self._bars.update(self._tasks[part], completed=done_bytes, size=size)

    def finish(self, part: str, result: str) -> None:
        """Replace the bar by a line."""
        if part in self._tasks:
            self._bars.remove_task(self._tasks.pop(part))
        self._console.print(f"{part}: {result}", highlight=False)

    def note(self, line: str) -> None:
        """The line, above the bars."""
        self._console.print(line, highlight=False)


@contextmanager
def show_progress(console: Console) -> Iterator[Progress]:
    """Bars where the console is a terminal, lines elsewhere."""
    if not console.is_terminal:
        yield Lines(lambda line: console.print(line, highlight=False, soft_wrap=True))
        return
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as RichBars

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[size]}"))
    with RichBars(*columns, console=console, transient=True) as bars:
        yield Bars(console, bars)


@contextmanager
def watch_bytes(progress: Progress, part: str, count: Callable[[], int]) -> Iterator[None]:
    """Report `count()` every fifth of a second while the block runs: how a download by another program is seen."""
    done = threading.Event()

    def poll() -> None:
        while not done.wait(POLL_S):
            progress.advance(part, count())

    thread = threading.Thread(target=poll, daemon=True, name=f"progress-{part}")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files under a folder that may be changing."""
    return sum(file_bytes(folder))


def file_bytes(folder: Path) -> Iterator[int]:
    """Size of each file under a folder that may be changing."""
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                yield path.stat().st_size
        except OSError:  # renamed or removed between listing and asking
            continue


def megabytes(n_bytes: int) -> str:
    """A size for people, in decimal units."""
    for limit, unit, digits in ((1e9, "GB", 1), (1e6, "MB", 0)):
        if n_bytes >= limit:
            return f"{n_bytes / limit:.{digits}f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"
