"""Queue for runs of graphs by requests that have a time limit: the request that is due first runs first.

Many requests at once would otherwise slow one another down until all of them are late. A run that would not end before
its request's limit, by what runs of its graph took lately, is given up, unless nothing else runs: then it begins at
once, however late it is. Requests without a limit do not queue. The limit comes from `system.time_limit`.
"""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.system.after_fork import tell_after_fork
from mechm_runtime.system.arrays import Array, Arrays
from mechm_runtime.system.time_limit import LONGEST_WAIT_S, OutOfTimeError, seconds_left

SMOOTHING = 0.2
"""Weight of the latest run in the expected cost of the next one."""


@dataclass(slots=True, order=True)
class _Waiting:
    """A run that waits for its turn. due_s: on `time.monotonic`'s clock; number: of its arrival."""

    due_s: float
    number: int
    turn: threading.Event = field(default_factory=threading.Event, compare=False)
    is_given_up: bool = field(default=False, compare=False)


class RunQueue:
    """Lets `n` runs of requests with a time limit go on at once. Thread-safe."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._lock = threading.Lock()
        self._n_running = 0
        self._n_arrived = 0
        self._waiting: list[_Waiting] = []
        tell_after_fork(self)

    @contextmanager
    def turn(self, run_s: float = 0.0) -> Iterator[None]:
        """Wait for a turn as long as the current request's limit allows; without a limit, do not wait.

        run_s: expected seconds of the run; it is given up when less is left.
        Raises: OutOfTimeError: the limit passed in the queue, or the request was cancelled.
        """
        left_s = seconds_left()
        if left_s == math.inf:
            yield
            return
        if left_s == -math.inf or not self._acquire(left_s - run_s):
            raise OutOfTimeError
        try:
            yield
        finally:
            with self._lock:
                self._pass_on()

    def after_fork(self) -> None:
        """Go on without the threads of the parent process."""
        self._lock = threading.Lock()
        self._n_running = 0
        self._waiting.clear()

    def _acquire(self, slack_s: float) -> bool:
        """Wait for a turn; returns whether it came. slack_s: until the run must begin."""
        with self._lock:
            if self._n_running < self.n and (slack_s > 0 or not self._n_running):
                self._n_running += 1
                return True
            if slack_s <= 0:
                return False
            self._n_arrived += 1
            waiting = _Waiting(time.monotonic() + slack_s, self._n_arrived)
            heapq.heappush(self._waiting, waiting)
        try:
            if waiting.turn.wait(None if slack_s > LONGEST_WAIT_S else slack_s):
                return True
        except BaseException:  # an interrupt
            with self._lock:
                self._give_up(waiting)
            raise
        with self._lock:
            if waiting.turn.is_set():
                return True
            self._give_up(waiting)
        return False

    def _give_up(self, waiting: _Waiting) -> None:
        """Leave the queue, or pass on the turn that was just given. The lock is held."""
        waiting.is_given_up = True
        if waiting.turn.is_set():
            self._pass_on()

    def _pass_on(self) -> None:
        """Give a turn that ended to the run that is due first. The lock is held."""
        while self._waiting:
            waiting = heapq.heappop(self._waiting)
            if not waiting.is_given_up:
                waiting.turn.set()
                return
        self._n_running -= 1


class QueuedRunner:
    """A graph whose runs wait in a queue, which several graphs share."""

    def __init__(self, runner: GraphRunner, queue: RunQueue) -> None:
        self._runner = runner
        self._queue = queue
        self._value_s = 0.0
        """Seconds of a run by the number of values that it is given, lately; 0 where none was measured."""

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Arrays by input name to arrays by output name. Raises what the graph does, and as `RunQueue.turn`."""
        n_values = sum(array.size for array in inputs.values())
        with self._queue.turn(self._value_s * n_values):
            began = time.perf_counter()
            outputs = self._runner.run(inputs)
            value_s = (time.perf_counter() - began) / max(1, n_values)
            # Threads may overwrite each other's measurement: one of several is as good as another.
            self._value_s += SMOOTHING * (value_s - self._value_s) if self._value_s else value_s
            return outputs
