"""Keeps decoding processes between conversations, since starting one costs as much as decoding a short clip."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from mechm_runtime.media.limits import MediaLimits
from mechm_runtime.media.reader import MediaReader
from mechm_runtime.system.after_fork import tell_after_fork
from mechm_runtime.system.time_limit import OutOfTimeError, check_time, wait_s


class ReaderPool:
    """Lends readers, each to one user at a time.

    limits: on recordings; None for the defaults. max_idle: processes that are kept while they are unused. A request
    with a time limit waits for its turn while as many are lent: more at once would only make all of them late.
    """

    def __init__(self, limits: MediaLimits | None, max_idle: int) -> None:
        self._limits = limits
        self._max_idle = max_idle
        self._lock = threading.Condition()
        self._n_lent = 0
        self._idle: list[MediaReader] = []
        weakref.finalize(self, _close, self._idle)
        tell_after_fork(self)

    @contextmanager
    def reader(self) -> Iterator[MediaReader]:
        """A reader whose process has been started. It is closed and not lent again after an error.

        Raises: MissingExtraError: without the `media` extra. OutOfTimeError: the request's time limit passed before one
            was free.
        """
        check_time()
        timeout_s = wait_s()
        with self._lock:
            if timeout_s is not None and not self._lock.wait_for(self._has_room, timeout_s):
                raise OutOfTimeError
            reader = self._idle.pop() if self._idle else MediaReader(self._limits)
            self._n_lent += 1
        is_usable = False
        try:
            reader.start()
            yield reader
            is_usable = True
        finally:
            with self._lock:
                self._n_lent -= 1
                is_kept = is_usable and len(self._idle) < self._max_idle
                if is_kept:
                    self._idle.append(reader)
                self._lock.notify()
            if not is_kept:
                reader.close()

    def close(self) -> None:
        """End the unused processes."""
        with self._lock:
            _close(self._idle)

    def after_fork(self) -> None:
        """Forget the processes, which belong to the parent process."""
        self._lock = threading.Condition()
        self._n_lent = 0
        self._idle.clear()

    def _has_room(self) -> bool:
        return self._n_lent < self._max_idle


def _close(readers: list[MediaReader]) -> None:
    while readers:
        readers.pop().close()
