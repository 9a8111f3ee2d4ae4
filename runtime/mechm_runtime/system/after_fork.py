"""What has to be made new in a forked process: locks that another thread held, work that another thread was doing.

A forked process has the memory of the one it came from and none of its threads. Whoever holds something that threads
keep alive asks here to be told.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    """Something that is told when it finds itself in a forked process."""

    def after_fork(self) -> None:
        """Drop what other threads held or did. Called before anything else runs in the new process."""


_told: weakref.WeakSet[Forkable] = weakref.WeakSet()
_registered = False


def tell_after_fork(thing: Forkable) -> None:
    """Have `thing.after_fork()` called in every process forked from this one, for as long as the thing lives."""
    global _registered
    _told.add(thing)
    if not _registered and hasattr(os, "register_at_fork"):
        _registered = True
        os.register_at_fork(after_in_child=_tell)


def _tell() -> None:
    for thing in list(_told):
        thing.after_fork()
