"""Keeps decoding processes between conversations, since starting one costs as much as decoding a short clip."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from mechm_runtime.media.limits import MediaLimits
from mechm_runtime.media.reader import MediaReader
from mechm_runtime.system.after_fork import tell_after_fork


class ReaderPool:
    """Lends readers, each to one user at a time.

    limits: on recordings; None for the defaults. max_idle: processes that are kept while they are unused.
    """

    def __init__(self, limits: MediaLimits | None, max_idle: int) -> None:
        self._limits = limits
        self._max_idle = max_idle
        self._lock = threading.Lock()
        self._idle: list[MediaReader] = []
        weakref.finalize(self, _close, self._idle)
        tell_after_fork(self)

    @contextmanager
    def reader(self) -> Iterator[MediaReader]:
        """A reader whose process has been started. It is closed and not lent again after an error.

        Raises: MissingExtraError: without the `media` extra.
        """
        with self._lock:
            reader = self._idle.pop() if self._idle else MediaReader(self._limits)
        try:
            reader.start()
            yield reader
        except BaseException:
            reader.close()
            raise
        with self._lock:
            if len(self._idle) < self._max_idle:
                self._idle.append(reader)
                return
        reader.close()

    def close(self) -> None:
        """End the unused processes."""
        with self._lock:
            _close(self._idle)

    def after_fork(self) -> None:
        """Forget the processes, which belong to the parent process."""
        self._lock = threading.Lock()
        self._idle.clear()


def _close(readers: list[MediaReader]) -> None:
    while readers:
        readers.pop().close()
