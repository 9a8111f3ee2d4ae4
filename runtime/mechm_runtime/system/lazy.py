"""A value that is made on first use, once, however many threads use it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from mechm_runtime.system.after_fork import tell_after_fork

T = TypeVar("T")


class Lazy(Generic[T]):
    """The value that `make` returns. Where it raises, the next call tries again."""

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

    @property
    def is_made(self) -> bool:
        """Whether the value is there."""
        return bool(self._made)

    def after_fork(self) -> None:
        """Drop the lock of a thread that does not exist here: the next call makes the value."""
        self._lock = threading.Lock()
