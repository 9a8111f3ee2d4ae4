"""A graph runs as exported, from several threads, on the provider that was asked for or not at all."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.engines.spec import CPU
from mechm_runtime.errors import BundleError, ProviderError


@pytest.fixture(scope="module")
def graph(tiny_bundle: Path) -> Path:
    return tiny_bundle / "onnx/expression.fp32.onnx"


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, 1, 64, 64)).astype(np.float32)


def test_names_in_and_names_out(graph: Path, faces: np.ndarray) -> None:
    engine = OnnxRuntimeEngine(graph, EngineConfig(n_threads=1))
    assert engine.input_names == ("pixel_values",)
    assert engine.output_names == ("expression_logits",)
    outputs = engine.run({"pixel_values": faces, "unused": faces})
    assert list(outputs) == ["expression_logits"]
    assert outputs["expression_logits"].shape == (3, 7)
    assert outputs["expression_logits"].dtype == np.float32


def test_a_batch_is_its_rows_and_memory_layout_is_nothing(graph: Path, faces: np.ndarray) -> None:
    engine = OnnxRuntimeEngine(graph, EngineConfig(n_threads=1))
    together = engine.run({"pixel_values": faces})["expression_logits"]
    rows = [engine.run({"pixel_values": faces[i : i + 1]})["expression_logits"][0] for i in range(3)]
    assert np.abs(together - np.stack(rows)).max() < 1e-6
    strided = np.asfortranarray(faces)
    assert not strided.flags.c_contiguous
    assert np.array_equal(engine.run({"pixel_values": strided})["expression_logits"], together)


def test_threads_share_an_engine(graph: Path) -> None:
    engine = OnnxRuntimeEngine(graph, EngineConfig(n_threads=1))
    random = np.random.default_rng(1)
    inputs = [random.normal(size=(1 + k % 4, 1, 64, 64)).astype(np.float32) for k in range(64)]
    expected = [engine.run({"pixel_values": x})["expression_logits"] for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda x: engine.run({"pixel_values": x})["expression_logits"], inputs))
    assert all(np.array_equal(answer, right) for answer, right in zip(answers, expected, strict=True))


@pytest.mark.parametrize("config", [EngineConfig(n_threads=1), EngineConfig(n_threads=3), EngineConfig(spin=True)])
def test_threads_and_spinning_change_no_answer(config: EngineConfig, graph: Path, faces: np.ndarray) -> None:
    engine, plain = OnnxRuntimeEngine(graph, config), OnnxRuntimeEngine(graph, EngineConfig())
    options = engine._session.get_session_options()
    assert options.intra_op_num_threads == config.threads
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == str(int(config.spin))
    difference = engine.run({"pixel_values": faces})["expression_logits"]
    difference -= plain.run({"pixel_values": faces})["expression_logits"]
    assert np.abs(difference).max() < 1e-6


@pytest.mark.parametrize("values", [{"n_threads": -1}, {"n_lanes": -1}])
def test_fewer_than_none_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="negative"):
        EngineConfig(**values)  # type: ignore[arg-type]


def test_one_thread_is_one_lane_unless_more_are_asked_for() -> None:
    assert EngineConfig(n_threads=1).lanes == 1
    assert EngineConfig(n_threads=1, n_lanes=3).lanes == 3
    assert EngineConfig().lanes == EngineConfig().threads


@pytest.mark.parametrize("provider", ["NoSuchExecutionProvider", "CUDAExecutionProvider", "", "cpu"])
def test_an_unknown_provider_is_an_error(provider: str, graph: Path) -> None:
    if provider in onnxruntime.get_available_providers():
        pytest.skip(f"{provider} is in this onnxruntime")
    with pytest.raises(ProviderError, match="not in this onnxruntime") as refused:
        OnnxRuntimeEngine(graph, EngineConfig(provider=provider))
    assert "mechm doctor" in refused.value.hint


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_load_is_an_error(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An onnxruntime that lists a provider and then silently runs on the CPU, as its GPU build does without a GPU."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["RocketExecutionProvider", CPU])
    with pytest.raises(ProviderError, match="did not load"):
        OnnxRuntimeEngine(graph, EngineConfig(provider="RocketExecutionProvider"))


def test_a_provider_that_fails_is_blamed_and_not_the_bundle(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class EPFail(Exception):  # noqa: N818 - onnxruntime's own name for it
        pass

    def fail(*_: object, **__: object) -> None:
        raise EPFail("no device\nwith details")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["RocketExecutionProvider", CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(ProviderError, match=r"did not load: no device$"):
        OnnxRuntimeEngine(graph, EngineConfig(provider="RocketExecutionProvider"))


@pytest.mark.parametrize("what", ["text", "empty", "half", "missing", "folder"])
def test_what_is_no_graph_is_an_error_of_the_bundle(what: str, graph: Path, tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    if what == "text":
        path.write_text("not a graph")
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "half":
        path.write_bytes(graph.read_bytes()[: graph.stat().st_size // 2])
    elif what == "folder":
        path.mkdir()
    with pytest.raises(BundleError, match=r"graph\.onnx cannot be loaded") as refused:
        OnnxRuntimeEngine(path, EngineConfig())
    assert refused.value.hint
    assert "\n" not in str(refused.value)


def test_a_graph_needs_no_file_once_it_is_loaded(graph: Path, faces: np.ndarray, tmp_path: Path) -> None:
    copy = Path(shutil.copy(graph, tmp_path))
    engine = OnnxRuntimeEngine(copy, EngineConfig(n_threads=1))
    before = engine.run({"pixel_values": faces})["expression_logits"]
    copy.unlink()
    assert np.array_equal(engine.run({"pixel_values": faces})["expression_logits"], before)


def test_a_sum_and_the_normalization_behind_it_stay_apart(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimized = tmp_path / "optimized.onnx"
    load = onnxruntime.InferenceSession

    def operators(*, as_asked: bool) -> set[str]:
        def and_save(path: str, options: onnxruntime.SessionOptions, **asked: Any) -> onnxruntime.InferenceSession:
            options.optimized_model_filepath = str(optimized)
            return load(path, options, **asked | ({} if as_asked else {"disabled_optimizers": None}))

        monkeypatch.setattr(onnxruntime, "InferenceSession", and_save)
        OnnxRuntimeEngine(tiny_bundle / "onnx/text.fp32.onnx", EngineConfig(n_threads=1))
        return {node.op_type for node in onnx.load(optimized).graph.node}

    joined, apart = operators(as_asked=False), operators(as_asked=True)
    assert joined - apart == {"SkipLayerNormalization"}, "onnxruntime still joins them by itself, under the same name"
    assert "LayerNormalization" in apart
