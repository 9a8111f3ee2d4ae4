"""A value that is made when it is first asked for, and once, however many threads ask."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from mechm_runtime.system.after_fork import tell_after_fork

T = TypeVar("T")


class Once(Generic[T]):
    """What `make` returns. Where it raises, the next who asks has it made again."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: list[T] = []
        tell_after_fork(self)

    def __call__(self) -> T:
        """The value. Raises what making it does."""
        if not self._made:
            with self._lock:
                if not self._made:
                    self._made.append(self._make())
        return self._made[0]

    def after_fork(self) -> None:
        """A thread that was making it is not there: whoever asks makes it."""
        self._lock = threading.Lock()
