"""Defers Ctrl-C and SIGTERM to the end of a training step, so that the training can save its state before it ends."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

REPEATED_SIGNAL_S = 3.0
"""Signals within this time count as one: launchers pass on the Ctrl-C that the terminal already sent to everyone."""


class Interruption:
    """Records whether the process was asked to stop; a second request takes effect at once.

    clock: returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.signal: signal.Signals | None = None
        self._clock = clock
        self._asked = 0.0

    @property
    def requested(self) -> bool:
        """Whether a signal was received."""
        return self.signal is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Record the signal; installed as handler by `deferred_signals`.

        Raises: KeyboardInterrupt, SystemExit: it is the second request, see `leave`.
        """
        del frame
        now = self._clock()
        if self.signal is None:
            self.signal, self._asked = signal.Signals(number), now
        elif now - self._asked > REPEATED_SIGNAL_S:
            self.leave()

    def leave(self) -> None:
        """End the process as the signal would have.

        Raises: KeyboardInterrupt: for SIGINT, and where another process of the training was asked. SystemExit: for
            SIGTERM, with the exit code 143 that shells report for it.
        """
        if self.signal is signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt


@contextmanager
def deferred_signals() -> Iterator[Interruption]:
    """Record SIGINT and SIGTERM instead of acting on them. Installs nothing outside of the main thread."""
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
