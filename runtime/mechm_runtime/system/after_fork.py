"""Have objects reset themselves in a forked process.

A forked process has the memory of its parent and none of its threads: locks that another thread held stay locked, and
work that another thread was doing is never finished. Objects with such state register here.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    """An object with state that a fork breaks."""

    def after_fork(self) -> None:
        """Reset what other threads held or did. Called before anything else runs in the new process."""


_told: weakref.WeakSet[Forkable] = weakref.WeakSet()
_registered = False


def tell_after_fork(thing: Forkable) -> None:
    """Have `thing.after_fork()` called in every process forked from this one, for as long as the object lives."""
    global _registered
    _told.add(thing)
    if not _registered and hasattr(os, "register_at_fork"):
        _registered = True
        os.register_at_fork(after_in_child=_tell)


def _tell() -> None:
    for thing in list(_told):
        thing.after_fork()
