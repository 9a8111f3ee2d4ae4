"""Joined runs give everyone what a run of their own would; a lone caller never waits; nobody's trouble is another's."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mechm_runtime.bundle.manifest import Bundle
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.batching import PADDING, BatchConfig, BatchingRunner
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.errors import InputError


class Gated:
    """A graph whose runs wait to be let through, one by one; x -> x * 2, and what it was run on.

    A batch that holds a number in `poison` fails.
    """

    def __init__(self, poison: float | None = None, error: type[BaseException] = ValueError) -> None:
        self.entered, self.gate = threading.Semaphore(0), threading.Semaphore(0)
        self.shapes: list[tuple[int, ...]] = []
        self.poison, self.error = poison, error
        self.n_at_once = self.most_at_once = 0
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with self._lock:
            self.shapes.append(inputs["x"].shape)
            self.n_at_once += 1
            self.most_at_once = max(self.most_at_once, self.n_at_once)
        self.entered.release()
        try:
            assert self.gate.acquire(timeout=10)
            if self.poison is not None and (inputs["x"] == self.poison).any():
                raise self.error("poisoned")
            return {"y": inputs["x"] * 2}
        finally:
            with self._lock:
                self.n_at_once -= 1

    def let(self, n: int) -> None:
        for _ in range(n):
            self.gate.release()


def x(*shape: int, value: float = 1.0) -> dict[str, np.ndarray]:
    return {"x": np.full(shape, value, np.float32)}


def queued(runner: BatchingRunner, n: int) -> None:
    """Wait until so many callers stand in the queue."""
    until = time.monotonic() + 10
    while len(runner._queue) != n:
        assert time.monotonic() < until
        time.sleep(0.001)


@pytest.fixture
def pool() -> Any:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def test_a_lone_caller_runs_at_once() -> None:
    graph = Gated()
    graph.let(2)
    runner = BatchingRunner(graph, BatchConfig())
    assert np.array_equal(runner.run(x(1, 4))["y"], x(1, 4, value=2)["x"])
    runner.run(x(3, 4))
    assert graph.shapes == [(1, 4), (3, 4)]
    assert runner.n_joined == 0


def test_who_comes_while_it_runs_is_joined_in_order(pool: ThreadPoolExecutor) -> None:
    graph = Gated()
    runner = BatchingRunner(graph, BatchConfig(max_rows=4))
    asked: list[Future[Any]] = []
    for number, shape in enumerate([(1, 4), (2, 4), (1, 4), (1, 5), (2, 4), (1, 4)]):
        asked.append(pool.submit(runner.run, x(*shape, value=number)))
        if number == 0:
            assert graph.entered.acquire(timeout=10)
        else:
            queued(runner, number)
    graph.let(4)
    for number, future in enumerate(asked):
        assert np.all(future.result(10)["y"] == 2 * number)
    # 2 + 1 fit, 2 more do not, the last 1 does; then the one of another shape, which is next in the queue.
    assert graph.shapes == [(1, 4), (4, 4), (1, 5), (2, 4)]
    assert [future.result()["y"].shape for future in asked] == [(1, 4), (2, 4), (1, 4), (1, 5), (2, 4), (1, 4)]
    assert runner.n_joined == 3
    graph.let(1)
    runner.run(x(1, 4))  # it is free again


def test_an_error_reaches_only_whose_it_is(pool: ThreadPoolExecutor) -> None:
    graph = Gated(poison=2.0)
    runner = BatchingRunner(graph, BatchConfig())
    asked = [pool.submit(runner.run, x(1, 4, value=0))]
    assert graph.entered.acquire(timeout=10)
    for number in (1, 2, 3):
        asked.append(pool.submit(runner.run, x(1, 4, value=number)))
        queued(runner, number)
    graph.let(10)
    for number in (0, 1, 3):
        assert np.all(asked[number].result(10)["y"] == 2 * number)
    with pytest.raises(ValueError, match="poisoned"):
        asked[2].result(10)
    assert runner.run(x(1, 4))["y"].tolist() == [[2.0] * 4]


@pytest.mark.parametrize("poisoned", [1.0, 2.0])
def test_an_interrupt_of_who_leads_leaves_the_others_their_turn(poisoned: float, pool: ThreadPoolExecutor) -> None:
    """Interrupted alone it passes the turn on; interrupted with others' requests it puts them back."""
    graph = Gated(poison=poisoned, error=KeyboardInterrupt)
    runner = BatchingRunner(graph, BatchConfig())
    ended: list[str] = []

    def ask(value: float) -> Any:
        try:
            return runner.run(x(1, 4, value=value))["y"]
        except KeyboardInterrupt:
            ended.append(f"interrupted at {value}")
            return None

    asked = [pool.submit(ask, 1.0)]
    assert graph.entered.acquire(timeout=10)
    for number in (2, 3, 4):
        asked.append(pool.submit(ask, float(number)))
        queued(runner, number - 1)
    graph.let(20)
    answers = [future.result(10) for future in asked]
    assert ended == [f"interrupted at {poisoned}"]
    for value, answer in zip((1.0, 2.0, 3.0, 4.0), answers, strict=True):
        assert answer is None if value == poisoned else np.all(answer == 2 * value)
    assert runner.run(x(1, 4, value=5))["y"].tolist() == [[10.0] * 4]


def test_who_gives_up_waiting_leaves_the_queue(pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Gated()
    runner = BatchingRunner(graph, BatchConfig())
    first = pool.submit(runner.run, x(1, 4))
    assert graph.entered.acquire(timeout=10)
    gives_up = threading.Event()
    wait = threading.Event.wait

    def interrupted(self: threading.Event, timeout: float | None = None) -> bool:
        if threading.current_thread().name == "impatient":
            assert wait(gives_up, 10)
            raise KeyboardInterrupt
        return wait(self, timeout)

    monkeypatch.setattr(threading.Event, "wait", interrupted)
    left: list[str] = []

    def ask() -> None:
        try:
            runner.run(x(1, 4, value=9))
        except KeyboardInterrupt:
            left.append("left")

    impatient = threading.Thread(target=ask, name="impatient")
    impatient.start()
    queued(runner, 1)
    third = pool.submit(runner.run, x(2, 4))
    queued(runner, 2)
    gives_up.set()
    impatient.join(10)
    assert left == ["left"]
    graph.let(2)
    first.result(10)
    third.result(10)
    assert graph.shapes == [(1, 4), (2, 4)]
    graph.let(1)
    runner.run(x(1, 4))


def test_as_many_runs_at_once_as_are_allowed(pool: ThreadPoolExecutor) -> None:
    graph = Gated()
    runner = BatchingRunner(graph, BatchConfig(max_rows=1, max_runs=3))
    asked = [pool.submit(runner.run, x(1, 4)) for _ in range(12)]
    graph.let(12)
    for future in asked:
        future.result(10)
    assert graph.most_at_once <= 3
    assert graph.shapes == [(1, 4)] * 12


def test_many_threads_get_their_own(tiny_bundle: Path, pool: ThreadPoolExecutor) -> None:
    engine = OnnxRuntimeEngine(tiny_bundle / "onnx/expression.fp32.onnx", EngineConfig(n_threads=1))
    runner = BatchingRunner(engine, BatchConfig(max_rows=8))
    random = np.random.default_rng(0)
    inputs = [{"pixel_values": random.normal(size=(1 + k % 3, 1, 64, 64)).astype(np.float32)} for k in range(200)]
    answers = list(pool.map(lambda one: runner.run(one)["expression_logits"], inputs))
    assert runner.n_joined > 0
    for one, answer in zip(inputs, answers, strict=True):
        assert np.abs(answer - engine.run(one)["expression_logits"]).max() < 1e-5


def inputs_of(bundle: Bundle, part: str, n_rows: int, length: int, seed: int) -> dict[str, np.ndarray]:
    """Random inputs of a part as the bundle declares them, every axis that may vary but the first of this length."""
    random = np.random.default_rng(seed)
    inputs = {}
    for tensor in bundle.parts[part].inputs:
        shape = [n_rows, *(axis if isinstance(axis, int) else length for axis in tensor.axes[1:])]
        if tensor.dtype == "float32":
            inputs[tensor.name] = random.normal(size=shape).astype(np.float32)
        elif tensor.name.endswith("mask"):
            inputs[tensor.name] = np.ones(shape, tensor.dtype)
        else:
            inputs[tensor.name] = random.integers(0, 3, shape).astype(tensor.dtype)
    return inputs


@pytest.mark.parametrize("part", ["text", "fusion", "scene", "expression"])
def test_a_joined_run_is_what_each_would_get(part: str, tiny_bundle: Path, pool: ThreadPoolExecutor) -> None:
    """Different lengths too, where a mask hides the padding."""
    bundle = open_bundle(tiny_bundle)
    engine = OnnxRuntimeEngine(bundle.path(bundle.parts[part].files["fp32"]), EngineConfig(n_threads=1))
    lengths = (9, 12, 11) if PADDING[part] is not None else (9, 9, 9)
    asked = [inputs_of(bundle, part, 1 + k % 2, length, k) for k, length in enumerate(lengths)]
    entered, gate = threading.Event(), threading.Event()

    class Slow:
        def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            entered.set()
            assert gate.wait(10)
            return engine.run(inputs)

    runner = BatchingRunner(Slow(), BatchConfig(), PADDING[part])
    first = pool.submit(runner.run, asked[0])
    assert entered.wait(10)
    others = []
    for number, inputs in enumerate(asked, start=1):
        others.append(pool.submit(runner.run, inputs))
        queued(runner, number)
    gate.set()
    first.result(10)
    answers = [future.result(10) for future in others]
    assert runner.n_joined == 3
    for inputs, answer in zip(asked, answers, strict=True):
        alone = engine.run(inputs)
        assert list(answer) == list(alone)
        for name, expected in alone.items():
            assert answer[name].shape == expected.shape
            finite = np.isfinite(expected)
            assert np.array_equal(np.isfinite(answer[name]), finite)
            assert np.abs(answer[name][finite] - expected[finite]).max() < 1e-4 * (1 + np.abs(expected[finite]).max())


def test_too_much_padding_is_not_worth_it(pool: ThreadPoolExecutor) -> None:
    shapes: list[tuple[int, ...]] = []
    entered, gate = threading.Event(), threading.Event()

    class Wide:
        def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            shapes.append(inputs["input_ids"].shape)
            entered.set()
            assert gate.wait(10)
            return {"last_hidden_state": inputs["input_ids"][..., None].astype(np.float32)}

    runner = BatchingRunner(Wide(), BatchConfig(max_padding=0.25), PADDING["text"])
    asked = []
    for number, length in enumerate((8, 8, 4, 7)):
        inputs = dict.fromkeys(("input_ids", "attention_mask"), np.ones((1, length), np.int64))
        asked.append(pool.submit(runner.run, inputs))
        if number == 0:
            assert entered.wait(10)
        else:
            queued(runner, number)
    gate.set()
    assert [future.result(10)["last_hidden_state"].shape[1] for future in asked] == [8, 8, 4, 7]
    # 8 + 4 would be a quarter of padding, which is allowed; with 7 beside them it is less.
    assert shapes == [(1, 8), (3, 8)]


@pytest.mark.parametrize("values", [{"max_rows": 0}, {"max_runs": 0}, {"max_padding": 1.0}, {"max_padding": -0.1}])
def test_settings_that_mean_nothing_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        BatchConfig(**values)
