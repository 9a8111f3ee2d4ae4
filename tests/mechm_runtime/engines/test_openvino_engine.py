"""Graphs on OpenVINO: fp32 as onnxruntime has it, int8 weights close to it, threads that do not disturb each other."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mechm_export.graphs.part import Int8Recipe
from mechm_export.precision.dynamic_int8 import quantize_weights
from mechm_runtime import Conversation, Pipeline, Utterance
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.load import load_engine
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.engines.openvino_engine import OpenVinoEngine
from mechm_runtime.engines.spec import CPU
from mechm_runtime.errors import BundleError, InputError, MissingExtraError

pytestmark = pytest.mark.openvino

OPENVINO = EngineConfig(n_threads=1, engine="openvino")
TALK = Conversation("talk", (Utterance(1, "A", "I got the job!"), Utterance(2, "B", "No way! Congratulations.")))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two linear layers with a GELU's stand-in between them, and an input that it does not use."""
    random = np.random.default_rng(0)
    first, second = (random.normal(size=shape).astype(np.float32) for shape in ((64, 128), (128, 64)))
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["wide"]),
        helper.make_node("Tanh", ["wide"], ["bent"]),
        helper.make_node("MatMul", ["bent", "second"], ["y"]),
    ]
    described = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 64]) for name in ("x", "y")]
    weights = [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")]
    model = helper.make_model(
        helper.make_graph(nodes, "mlp", described[:1], described[1:], weights),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    path = tmp_path_factory.mktemp("graph") / "mlp.onnx"
    onnx.save_model(model, path)
    return path


def rows(n: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(n).normal(size=(n, 64)).astype(np.float32)


@pytest.mark.parametrize("n", [1, 7, 300])
def test_fp32_is_fp32(graph: Path, n: int) -> None:
    inputs = {"x": rows(n), "unused": rows(1)}
    found, expected = (
        engine.run(inputs)["y"] for engine in (OpenVinoEngine(graph, OPENVINO), OnnxRuntimeEngine(graph, OPENVINO))
    )
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_int8_weights_are_near_and_a_quarter_of_the_size(graph: Path, tmp_path: Path) -> None:
    path = tmp_path / "mlp.w8.onnx"
    quantize_weights(graph, path, Int8Recipe(smoothing=0.5), [{"x": rows(50)}])
    assert path.stat().st_size < 0.4 * graph.stat().st_size
    inputs = {"x": rows(20)}
    expected = OnnxRuntimeEngine(graph, EngineConfig()).run(inputs)["y"]
    for engine in (load_engine(path, OPENVINO), load_engine(path, EngineConfig())):  # plain ONNX: any engine reads it
        found = engine.run(inputs)["y"]
        assert np.abs(found - expected).max() > 0
        assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


def test_answers_outlive_the_next_run_and_threads_share_an_engine(graph: Path) -> None:
    engine = OpenVinoEngine(graph, OPENVINO)
    inputs = [rows(n) for n in range(1, 33)]
    expected = [engine.run({"x": x})["y"] for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda x: engine.run({"x": x})["y"], inputs))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    for path in (broken, tmp_path / "missing.onnx"):
        with pytest.raises(BundleError, match="cannot be loaded"):
            OpenVinoEngine(path, OPENVINO)


def test_settings_that_contradict_each_other_are_refused() -> None:
    assert EngineConfig(provider=CPU, engine="openvino").threads >= 1
    with pytest.raises(ValueError, match="is onnxruntime's"):
        EngineConfig(provider="CUDAExecutionProvider", engine="openvino")
    with pytest.raises(ValueError, match="engine"):
        EngineConfig(engine="other")  # type: ignore[arg-type]


def test_without_it_the_extra_is_named(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError) as caught:
        OpenVinoEngine(graph, OPENVINO)
    assert "mechm[openvino]" in caught.value.hint


def test_a_bundle_that_was_not_made_for_it_runs_in_fp32_and_int8_is_refused(tiny_bundle: Path) -> None:
    expected = Pipeline.from_bundle(tiny_bundle, precision="fp32").analyze(TALK)
    found = Pipeline.from_bundle(tiny_bundle, engine=OPENVINO).analyze(TALK)
    for one, other in zip(found.utterances, expected.utterances, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
    with pytest.raises(InputError, match="onnxruntime's own"):
        Pipeline.from_bundle(tiny_bundle, engine=OPENVINO, precision="int8")


def test_an_engine_that_ends_in_another_thread_leaves_signals_alone(graph: Path) -> None:
    """In a process of its own, since it dies of SIGSEGV otherwise, on processors with AMX."""
    program = f"""
import gc, signal, threading
from pathlib import Path
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.openvino_engine import OpenVinoEngine

handled = []
signal.signal(signal.SIGTERM, lambda *_: handled.append(1))
engines = [OpenVinoEngine(Path({str(graph)!r}), EngineConfig(n_threads=1, engine="openvino"))]
thread = threading.Thread(target=lambda: (engines.clear(), gc.collect()))
thread.start()
thread.join()
signal.raise_signal(signal.SIGTERM)
assert handled == [1]
"""
    # With faulthandler Python handles signals on a stack of their own, as pytest and many services have it.
    done = subprocess.run([sys.executable, "-X", "faulthandler", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
