"""Types of the callbacks that long work reports its progress to."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with the name of the stage, the units of work that are done, and their total (0 where it is unknown)."""

StageProgress = Callable[[int, int], None]
"""Called with the units of work that are done, and their total, where there is one stage."""


def no_progress(_stage: str, _done: int, _total: int) -> None:
    """A `Progress` that reports nothing."""
