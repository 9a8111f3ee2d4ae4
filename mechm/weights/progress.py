"""Progress of a fetch: bars on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import os
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
    """Receives the events of `fetch_weights`, from several threads."""

    def start(self, part: str, doing: str, total_bytes: int | None) -> None:
        """A download (size known) or a conversion (None) of a part begins."""

    def advance(self, part: str, done_bytes: int) -> None:
        """This many bytes of the part are downloaded."""

    def finish(self, part: str, result: str) -> None:
        """The part's current work is done; `result` is one line."""

    def note(self, line: str) -> None:
        """A remark for the user, for example that the hub cannot be reached."""


class SilentProgress:
    """Reports nothing."""

    def start(self, part: str, doing: str, total_bytes: int | None) -> None:
        """Nothing."""

    def advance(self, part: str, done_bytes: int) -> None:
        """Nothing."""

    def finish(self, part: str, result: str) -> None:
        """Nothing."""

    def note(self, line: str) -> None:
        """Nothing."""


class LineProgress:
    """Writes a line at the start and end of each step, and every ten seconds of a download."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._totals: dict[str, int | None] = {}
        self._last_line_s: dict[str, float] = {}

    def start(self, part: str, doing: str, total_bytes: int | None) -> None:
        """Write that it begins."""
        self._totals[part] = total_bytes
        self._last_line_s[part] = time.monotonic()
        size = "" if total_bytes is None else f" ({format_bytes(total_bytes)})"
        self._write(f"{part}: {doing}{size}")

    def advance(self, part: str, done_bytes: int) -> None:
        """Write a line if the last one is ten seconds old."""
        now = time.monotonic()
        total = self._totals.get(part)
        if total and now - self._last_line_s[part] >= LINE_EVERY_S:
            self._last_line_s[part] = now
            self._write(f"{part}: {format_bytes(done_bytes)} of {format_bytes(total)}")

    def finish(self, part: str, result: str) -> None:
        """Write the result."""
        self._write(f"{part}: {result}")

    def note(self, line: str) -> None:
        """Write the line."""
        self._write(line)


class BarProgress:
    """Shows one bar per part, with rich."""

    def __init__(self, console: Console, bars: RichBars) -> None:
        self._console = console
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._totals: dict[str, int | None] = {}

    def start(self, part: str, doing: str, total_bytes: int | None) -> None:
        """Add a bar, or change the description of the part's bar; it pulses where the size is unknown."""
        description = f"{part}: {doing}"
        if part not in self._tasks:
            self._tasks[part] = self._bars.add_task(description, total=total_bytes, size="")
        else:
            self._bars.reset(self._tasks[part], description=description, total=total_bytes, size="")
        self._totals[part] = total_bytes

    def advance(self, part: str, done_bytes: int) -> None:
        """Move the bar."""
        total = self._totals[part]
        size = "" if total is None else f"{format_bytes(done_bytes)} of {format_bytes(total)}"
        self._bars.update(self._tasks[part], completed=done_bytes, size=size)

    def finish(self, part: str, result: str) -> None:
        """Replace the bar with a line."""
        if part in self._tasks:
            self._bars.remove_task(self._tasks.pop(part))
        self._console.print(f"{part}: {result}", highlight=False)

    def note(self, line: str) -> None:
        """Print the line above the bars."""
        self._console.print(line, highlight=False)


@contextmanager
def show_progress(console: Console) -> Iterator[Progress]:
    """Yield bars where the console is a terminal, else lines."""
    if not console.is_terminal:
        yield LineProgress(lambda line: console.print(line, highlight=False, soft_wrap=True))
        return
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as RichBars

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[size]}"))
    with RichBars(*columns, console=console, transient=True) as bars:
        yield BarProgress(console, bars)


@contextmanager
def watch_bytes(progress: Progress, part: str, count: Callable[[], int]) -> Iterator[None]:
    """Report `count()` every fifth of a second while the block runs, to follow another program's download."""
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
    """Sum the sizes of all files under a folder that another program may be changing."""
    return sum(file_bytes(folder))


def file_bytes(folder: Path) -> Iterator[int]:
    """Yield the size of each file under a folder that another program may be changing.

    Files and folders that are renamed or removed meanwhile are skipped.
    """
    # Unlike `Path.rglob`, `os.walk` ignores folders that vanish before they are listed.
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            try:
                if path.is_file():
                    yield path.stat().st_size
            except OSError:
                continue


def format_bytes(n_bytes: int) -> str:
    """Format a size in decimal units: `1.2 GB`, `35 MB`, `7 kB`."""
    for limit, unit, digits in ((1e9, "GB", 1), (1e6, "MB", 0)):
        if n_bytes >= limit:
            return f"{n_bytes / limit:.{digits}f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"
