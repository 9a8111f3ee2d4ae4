"""Ctrl-C and SIGTERM between two steps instead of within one, so that a training can save what it has and leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Whether the process was asked to stop; the first request is remembered, the second takes effect at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def requested(self) -> bool:
        """Whether a signal came in."""
        return self.signal is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal; the handler that `deferred_signals` installs."""
        del frame
        if self.requested:
            self.signal = signal.Signals(number)
            self.leave()
        self.signal = signal.Signals(number)

    def leave(self) -> None:
        """End as the signal would have ended the process.

        Raises: KeyboardInterrupt: for SIGINT, and where another process of the training was asked. SystemExit: for
            SIGTERM, with the exit code 143 that shells report for it.
        """
        if self.signal is signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt


@contextmanager
def deferred_signals() -> Iterator[Interruption]:
    """Within it, SIGINT and SIGTERM are noted and not acted on. Outside of the main thread nothing is installed."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {s: signal.signal(s, interruption.handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
