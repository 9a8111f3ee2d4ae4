"""The time limit of the request that the current thread or task works on, for code that waits or works in steps.

A limit travels in a context variable, so that queues, connections and encoders far below a request know how long they
may wait. It interrupts nothing by itself: whoever waits asks `seconds_left`, and whoever works in steps asks it between
them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

LONGEST_WAIT_S = 1e6
"""Eleven days; a longer limit counts as none, since waits take no numbers of any size."""


class TimeLimit(Protocol):
    """The end of one request."""

    @property
    def reason(self) -> str:
        """Reported for what is left out because of this limit."""

    def left_s(self) -> float:
        """Seconds left for work before the result is put together; infinite without a limit, below 0 when over."""

    def fits(self, stage: str, units: float) -> bool:
        """Whether work of a stage (tokens, seconds of sound) is expected to be done in the time left."""


class OutOfTimeError(Exception):
    """The time limit of a request passed before some work could begin or end. Caught where stages are left out."""

    def __init__(self) -> None:
        super().__init__("the time limit of the request passed")


_current: ContextVar[TimeLimit | None] = ContextVar("time_limit", default=None)


@contextmanager
def limited_by(limit: TimeLimit | None) -> Iterator[None]:
    """Set the limit of everything that is called inside, in this thread or task; None for no limit."""
    token = _current.set(limit)
    try:
        yield
    finally:
        _current.reset(token)


def current_limit() -> TimeLimit | None:
    """The limit of the current request; None without one."""
    return _current.get()


def seconds_left() -> float:
    """Seconds left of the current request; infinite without a limit, below 0 when it is over."""
    limit = _current.get()
    return math.inf if limit is None else limit.left_s()


def wait_s() -> float | None:
    """Seconds that a lock or a queue may be waited for, as their timeout: at least 0; None to wait without a limit."""
    left_s = seconds_left()
    return None if left_s > LONGEST_WAIT_S else max(0.0, left_s)


def check_time() -> None:
    """Stop where the current request's time is over.

    Raises: OutOfTimeError: it is.
    """
    if seconds_left() <= 0:
        raise OutOfTimeError
