"""Runs of requests with a time limit: the one that is due first runs first, and none waits past its limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from mechm_runtime.analysis.deadline import CostEstimator, Deadline, NoDeadline
from mechm_runtime.engines.batching import BatchConfig, BatchingRunner
from mechm_runtime.engines.run_queue import QueuedRunner, RunQueue
from mechm_runtime.system.time_limit import OutOfTimeError, limited_by, seconds_left, wait_s


class Slow:
    """A graph that runs until it is let go. started: the values that it was given, in order."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.go = threading.Event()
        self.is_running = threading.Event()

    def run(self, inputs: Any) -> dict[str, Any]:
        self.started.append(int(inputs["x"][0]))
        self.is_running.set()
        self.go.wait(20)
        return {"y": inputs["x"]}


def limit(ms: float) -> Deadline:
    return Deadline(ms, CostEstimator())


def run(runner: Any, value: int, ms: float | None) -> Any:
    with limited_by(None if ms is None else limit(ms)):
        return runner.run({"x": np.array([value])})


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_the_run_that_is_due_first_runs_first() -> None:
    graph, queue = Slow(), RunQueue(1)
    runner = QueuedRunner(graph, queue)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(run, runner, 0, 60_000.0)]
        assert graph.is_running.wait(10)
        for n_waiting, (value, ms) in enumerate(((3, 30_000.0), (1, 10_000.0), (2, 20_000.0)), 1):
            calls.append(pool.submit(run, runner, value, ms))
            until(lambda n=n_waiting: len(queue._waiting) == n)  # type: ignore[misc]
        graph.go.set()
        assert [int(call.result(10)["y"][0]) for call in calls] == [0, 3, 1, 2]
    assert graph.started == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "kind", [lambda graph: QueuedRunner(graph, RunQueue(1)), lambda g: BatchingRunner(g, BatchConfig())]
)
def test_no_run_waits_past_its_limit(kind: Callable[[Slow], Any]) -> None:
    graph = Slow()
    runner = kind(graph)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(run, runner, 0, 60_000.0)
        assert graph.is_running.wait(10)
        began = time.monotonic()
        with pytest.raises(OutOfTimeError):
            run(runner, 1, 100.0)
        assert 0.05 < time.monotonic() - began < 2
        graph.go.set()
        first.result(10)
    assert int(run(runner, 2, 60_000.0)["y"][0]) == 2, "the turn of the one that left is free"
    assert graph.started == [0, 2]


def test_a_free_graph_runs_however_late_it_is_and_without_a_limit_nobody_queues() -> None:
    graph = Slow()
    graph.go.set()
    runner = QueuedRunner(graph, RunQueue(1))
    late = limit(1.0)
    late.started -= 1
    with limited_by(late):
        assert seconds_left() < 0
        assert wait_s() == 0
        runner.run({"x": np.array([1])})
    graph.go.clear()
    graph.is_running.clear()
    with ThreadPoolExecutor(2) as pool:
        for value in (2, 3):
            pool.submit(run, runner, value, None)
        until(lambda: graph.started[1:] == [2, 3] or graph.started[1:] == [3, 2])
        graph.go.set()


def test_a_late_run_is_given_up_while_others_run() -> None:
    graph, quick = Slow(), Slow()
    quick.go.set()
    queue = RunQueue(2)
    late = limit(1.0)
    late.started -= 1
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(run, QueuedRunner(graph, queue), 0, 60_000.0)
        assert graph.is_running.wait(10)
        assert int(run(QueuedRunner(quick, queue), 1, 60_000.0)["y"][0]) == 1, "in time, it runs beside the other"
        with limited_by(late), pytest.raises(OutOfTimeError):
            QueuedRunner(quick, queue).run({"x": np.array([2])})
        graph.go.set()
        first.result(10)
    assert quick.started == [1]


def test_a_cancelled_request_runs_nothing_more() -> None:
    graph = Slow()
    graph.go.set()
    ended = NoDeadline()
    with limited_by(ended):
        QueuedRunner(graph, RunQueue(1)).run({"x": np.array([1])})
        ended.cancel()
        with pytest.raises(OutOfTimeError):
            QueuedRunner(graph, RunQueue(1)).run({"x": np.array([2])})
    assert graph.started == [1]
    assert seconds_left() == float("inf")


def test_a_very_long_limit_is_no_number_that_a_lock_refuses() -> None:
    with limited_by(limit(1e300)):
        assert wait_s() is None
        assert threading.Event().wait(0) is False
