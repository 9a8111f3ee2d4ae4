"""Ctrl-C and SIGTERM between two steps instead of within one, so that a training can save what it has and leave."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ECHO_S = 3.0
"""A second signal this soon is no second request: launchers pass on the Ctrl-C that the terminal sent to everyone."""


class Interruption:
    """Whether the process was asked to stop; the first request is remembered, a second one takes effect at once.

    clock: seconds from any start.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.signal: signal.Signals | None = None
        self._clock = clock
        self._asked = 0.0

    @property
    def requested(self) -> bool:
        """Whether a signal came in."""
        return self.signal is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal; the handler that `deferred_signals` installs.

        Raises: KeyboardInterrupt, SystemExit: it is the second request, see `leave`.
        """
        del frame
        now = self._clock()
        if self.signal is None:
            self.signal, self._asked = signal.Signals(number), now
        elif now - self._asked > ECHO_S:
            self.leave()

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
