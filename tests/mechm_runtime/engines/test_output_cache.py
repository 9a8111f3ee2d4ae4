"""Cached outputs are not computed again, equal to the bit and bounded; a damaged file counts as absent."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.engines.output_cache import NO_CACHE, CacheConfig, CachedRunner, OutputCache
from mechm_runtime.engines.output_store import OutputStore
from mechm_runtime.errors import InputError


class Counted:
    """A graph that says what it was run on."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.n_rows: list[int] = []

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.n_rows.append(len(next(iter(inputs.values()))))
        outputs: dict[str, np.ndarray] = self.runner.run(inputs)
        return outputs


@pytest.fixture
def graph(tiny_bundle: Path) -> Counted:
    return Counted(OnnxRuntimeEngine(tiny_bundle / "onnx/expression.fp32.onnx", EngineConfig(n_threads=1)))


def faces(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"pixel_values": np.random.default_rng(seed).normal(size=(n, 1, 64, 64)).astype(np.float32)}


def cached(graph: Counted, cache: OutputCache, *, by_row: bool = False, identity: str = "expression") -> CachedRunner:
    return CachedRunner(graph, cache, ("bundle", identity), by_row=by_row)


def test_the_same_is_run_once_and_what_comes_back_is_ones_own(graph: Counted) -> None:
    runner = cached(graph, OutputCache(CacheConfig()))
    once = runner.run(faces(3))
    expected = once["expression_logits"].copy()
    once["expression_logits"][:] = 7.0  # a caller may do with it what it likes
    again = runner.run({"pixel_values": np.asfortranarray(faces(3)["pixel_values"])})
    assert graph.n_rows == [3]
    assert np.array_equal(again["expression_logits"], expected)
    assert np.array_equal(expected, graph.runner.run(faces(3))["expression_logits"])


@pytest.mark.parametrize("by_row", [False, True])
def test_anything_else_is_run(by_row: bool, graph: Counted) -> None:
    """Another value, dtype, shape of the same bytes, name, graph: five keys, none of them the first."""
    cache = OutputCache(CacheConfig())

    class Blind:
        n = 0

        def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            Blind.n += 1
            return {"n": np.full((len(next(iter(inputs.values()))), 1), Blind.n)}

    blind = Blind()
    values = np.zeros((1, 4, 2), np.int32)
    other = values.copy()
    other[0, 3, 1] = 1
    for inputs in (values, other, values.view(np.float32), values.reshape(1, 2, 4)):
        CachedRunner(blind, cache, ("b", "x"), by_row=by_row).run({"a": inputs})
    CachedRunner(blind, cache, ("b", "x"), by_row=by_row).run({"b": values})
    CachedRunner(blind, cache, ("bx", ""), by_row=by_row).run({"a": values})
    assert Blind.n == 6
    assert CachedRunner(blind, cache, ("b", "x"), by_row=by_row).run({"a": values})["n"].tolist() == [[1]]


def test_of_a_batch_only_the_rows_that_are_not_known_are_run(graph: Counted) -> None:
    runner = cached(graph, OutputCache(CacheConfig()), by_row=True)
    pixels = faces(5)["pixel_values"]
    runner.run({"pixel_values": pixels[[0, 2]]})
    found = runner.run({"pixel_values": pixels[[0, 1, 2, 1, 3]]})["expression_logits"]
    assert graph.n_rows == [2, 2], "row 1 comes twice and is run once"
    whole = graph.runner.run({"pixel_values": pixels[[0, 1, 2, 1, 3]]})["expression_logits"]
    assert np.abs(found - whole).max() < 1e-6
    assert np.array_equal(found[1], found[3])


def test_memory_is_bounded_over_all_graphs_and_the_oldest_goes(graph: Counted) -> None:
    size = 7 * 4  # of one face's logits
    cache = OutputCache(CacheConfig(memory_bytes=3 * size))
    first, second = cached(graph, cache), cached(graph, cache, identity="another")
    for runner, seed in ((first, 0), (second, 0), (first, 1), (first, 0), (second, 1)):
        runner.run(faces(1, seed))
        assert cache.counts.n_bytes <= 3 * size
    assert len(graph.n_rows) == 4
    first.run(faces(1, 0))  # used since
    assert len(graph.n_rows) == 4
    second.run(faces(1, 0))  # the oldest
    assert len(graph.n_rows) == 5
    first.run(faces(4))  # larger than all there is
    assert cache.counts.n_bytes == 3 * size
    assert (cache.counts.n_hits, cache.counts.n_misses) == (2, 6)
    cache.clear()
    assert cache.counts.n_bytes == 0


class Gate:
    """A graph that waits, and fails the first time where it is told to."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        self.error = error
        self.n_runs = 0
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with self._lock:
            self.n_runs += 1
            error, self.error = self.error, None
        self.entered.set()
        assert self.open.wait(10)
        if error is not None:
            raise error
        return {"sum": inputs["x"].sum(-1)}


@pytest.mark.parametrize("by_row", [False, True])
def test_threads_that_ask_the_same_compute_it_once(by_row: bool) -> None:
    gate = Gate()
    runner = CachedRunner(gate, OutputCache(CacheConfig()), ("g",), by_row=by_row)
    inputs = {"x": np.arange(12.0).reshape(3, 4)}
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(runner.run, inputs) for _ in range(8)]
        assert gate.entered.wait(10)
        time.sleep(0.05)
        gate.open.set()
        assert all(np.array_equal(future.result(10)["sum"], inputs["x"].sum(-1)) for future in asked)
    assert gate.n_runs == 1


@pytest.mark.parametrize("error", [ValueError("no such graph"), KeyboardInterrupt()])
def test_who_waited_for_what_failed_asks_again(error: BaseException) -> None:
    gate = Gate(error)
    runner = CachedRunner(gate, OutputCache(CacheConfig()), ("g",), by_row=False)
    inputs = {"x": np.ones((1, 4))}
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            runner.run(inputs)
        except BaseException as raised:  # noqa: BLE001
            failed.append(raised)

    first = threading.Thread(target=ask)
    first.start()
    assert gate.entered.wait(10)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(runner.run, inputs)
        time.sleep(0.05)
        gate.open.set()
        assert second.result(10)["sum"].tolist() == [4.0]
    first.join(10)
    assert failed == [error]
    assert gate.n_runs == 2


# On disk


def test_nothing_is_written_unless_a_folder_is_named(graph: Counted, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MECHM_CACHE", str(tmp_path))
    cached(graph, OutputCache(CacheConfig())).run(faces(2))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_serves_the_next_process(graph: Counted, tmp_path: Path) -> None:
    config = CacheConfig(folder=tmp_path / "kept")
    written = cached(graph, OutputCache(config)).run(faces(2))
    read = cached(graph, OutputCache(config)).run(faces(2))
    assert graph.n_rows == [2]
    assert np.array_equal(read["expression_logits"], written["expression_logits"])
    assert read["expression_logits"].dtype == np.float32
    (file,) = (tmp_path / "kept").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_disk_alone(graph: Counted, tmp_path: Path) -> None:
    runner = cached(graph, OutputCache(CacheConfig(memory_bytes=0, folder=tmp_path)), by_row=True)
    runner.run(faces(3))
    runner.run(faces(3))
    assert graph.n_rows == [3]
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("dtype", ["float16", "float32", "int64", "int32", "uint8", "bool"])
def test_arrays_come_back_as_they_were(dtype: str, tmp_path: Path) -> None:
    store = OutputStore(tmp_path, 1 << 20)
    shapes: dict[str, tuple[int, ...]] = {"a": (2, 3, 4), "none": (0, 5), "one": ()}
    outputs = {name: np.full(shape, 3).astype(dtype) for name, shape in shapes.items()}
    outputs["a"] *= np.arange(24).reshape(2, 3, 4).astype(dtype)
    store.keep("ab", outputs)
    found = store.find("ab")
    assert found is not None
    assert list(found) == list(outputs)
    for name, array in outputs.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert np.array_equal(found[name], array)
    assert store.find("cd") is None


def test_what_no_file_can_hold_is_not_written(tmp_path: Path) -> None:
    store = OutputStore(tmp_path, 1000)
    store.keep("aa", {"a": np.array(["words"])})
    store.keep("bb", {"a": np.zeros(1000, np.float32)})
    assert list(tmp_path.iterdir()) == []


def damaged(content: bytes) -> dict[str, bytes]:
    huge = content.replace(b'"shape": [3]', b'"shape": [3000000000000]')
    minus = content.replace(b'"shape": [3]', b'"shape": [-3]')
    return {
        "empty": b"",
        "cut off in the header": content[:30],
        "cut off in the arrays": content[:-1],
        "longer": content + b"\0",
        "another value": content[:-1] + bytes([content[-1] ^ 1]),
        "another file": b"\x80\x04\x95" + content,
        "a header too long": content[:8] + b"\xff\xff\xff\xff" + content[12:],
        "not JSON": content[:12] + b"}" + content[13:],
        "a shape above the file": content[:8] + (len(huge) - 24).to_bytes(4, "big") + huge[12:],
        "an unknown dtype": content.replace(b'"float32"', b'"object_"'),
        "a negative axis": content[:8] + (len(minus) - 24).to_bytes(4, "big") + minus[12:],
        "an axis that is true": content.replace(b'"shape": [3]', b'"shape":[1E1]'),
        "another key": content.replace(b'"key": "ab"', b'"key": "ba"'),
        "no object": content[:8] + (4).to_bytes(4, "big") + b"null" + content[-12:],
    }


@pytest.mark.parametrize("how", damaged(bytes(40)))
def test_a_damaged_file_is_a_miss_and_goes(how: str, tmp_path: Path) -> None:
    store = OutputStore(tmp_path, 1 << 20)
    store.keep("ab", {"a": np.array([1.0, 2.0, 3.0], np.float32)})
    (file,) = tmp_path.iterdir()
    broken = damaged(file.read_bytes())[how]
    assert broken != file.read_bytes()
    file.write_bytes(broken)
    assert store.find("ab") is None
    assert not file.exists()
    store.keep("ab", {"a": np.array([1.0], np.float32)})
    assert store.find("ab") is not None


def test_the_folder_is_bounded_and_the_least_recently_used_goes(tmp_path: Path) -> None:
    store = OutputStore(tmp_path, 10_000)
    for number in range(5):
        store.keep(f"0{number}", {"a": np.full(400, number, np.float32)})
        os.utime(tmp_path / f"0{number}.outputs", (number, number))
    assert store.find("00") is not None  # used since
    for number in (5, 6):
        store.keep(f"0{number}", {"a": np.full(400, number, np.float32)})
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 10_000
    assert store.find("00") is not None
    assert store.find("01") is None
    assert store.find("06") is not None


def test_processes_that_share_a_folder_share_its_bound(tmp_path: Path) -> None:
    stores = [OutputStore(tmp_path, 60_000) for _ in range(2)]
    for number in range(200):
        stores[number % 2].keep(f"{number:04x}", {"a": np.full(100, number, np.float32)})
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 1.1 * 60_000
    assert stores[0].find(f"{199:04x}") is not None


def test_a_disk_that_does_not_write_is_no_error(graph: Counted, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    runner = cached(graph, OutputCache(CacheConfig(memory_bytes=0, folder=tmp_path / "file")))
    expected = graph.runner.run(faces(1))["expression_logits"]
    assert np.array_equal(runner.run(faces(1))["expression_logits"], expected)
    assert np.array_equal(runner.run(faces(1))["expression_logits"], expected)


def test_a_cache_that_remembers_nothing_says_so() -> None:
    assert not NO_CACHE.remembers
    assert CacheConfig().remembers
    assert CacheConfig(memory_bytes=0, folder=Path("somewhere")).remembers
    with pytest.raises(InputError, match="fewer than 0"):
        CacheConfig(memory_bytes=-1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # that is what is tested
def test_a_forked_process_does_not_wait_for_threads_that_it_has_not() -> None:
    gate = Gate()
    runner = CachedRunner(gate, OutputCache(CacheConfig()), ("g",), by_row=False)
    inputs = {"x": np.ones((1, 4))}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(runner.run, inputs)
        assert gate.entered.wait(10)
        child = os.fork()
        if child == 0:
            gate.open = threading.Event()
            gate.open.set()
            os._exit(0 if runner.run(inputs)["sum"].tolist() == [4.0] else 1)
        gate.open.set()
        assert asked.result(10)["sum"].tolist() == [4.0]
    deadline = time.monotonic() + 20
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if done == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert done == (child, 0)
