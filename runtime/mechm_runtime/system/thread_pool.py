"""Threads in which encoders run side by side, or asynchronous calls wait, shared by all conversations of a pipeline.

They are started on first use and end when the pipeline is closed or garbage collected. A forked process starts its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import ParamSpec, TypeVar

from mechm_runtime.system.after_fork import tell_after_fork

P = ParamSpec("P")
T = TypeVar("T")


class ThreadPool:
    """Runs calls in at most `n` threads, begun in the order in which they are submitted.

    n: 1 where everything runs one after the other anyway.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        tell_after_fork(self)

    def submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a call in a thread. It must not wait for another one that is submitted here."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.n, thread_name_prefix="mechm")
            return self._pool.submit(call, *args, **kwargs)

    async def run_async(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Await a call in a thread, with the context variables of the present task, as `asyncio.to_thread` does.

        A call that has begun goes on when the task is cancelled.
        """
        context = copy_context()
        return await asyncio.wrap_future(self.submit(lambda: context.run(call, *args, **kwargs)))

    def close(self) -> None:
        """End the threads when what they run is done; a later call starts them again."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def after_fork(self) -> None:
        """Drop threads that do not exist in this process."""
        self._lock = threading.Lock()
        self._pool = None
