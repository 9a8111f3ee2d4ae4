"""TensorRT without a GPU: keys, the store, real engines of TensorRT-RTX, and what is refused and why."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mechm_runtime.bundle.engine_file import EngineFile, EngineKey, ShapeRange
from mechm_runtime.bundle.open import file_sha256
from mechm_runtime.engines.tensorrt.build import build_engine
from mechm_runtime.engines.tensorrt.engine import TensorRtEngine, check_memory, check_shape
from mechm_runtime.engines.tensorrt.engine_store import EngineStore
from mechm_runtime.engines.tensorrt.library import Gpu, Library, load_library, system_name, visible_gpu
from mechm_runtime.errors import InputError, MissingExtraError, ProviderError

SHAPES = (ShapeRange("x", (1, 8), (4, 8), (16, 8)),)
KEY = EngineKey("tensorrt-rtx", "1.7.1.116", ("86",), "linux-x86_64", "fp32", SHAPES, "0" * 64)


@pytest.fixture(scope="module")
def library() -> Library:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'mechm[tensorrt-rtx]'")
    return load_library("tensorrt-rtx")


@pytest.fixture
def without_gpu(library: Library) -> None:
    try:
        gpu = visible_gpu("tensorrt-rtx")
    except ProviderError:
        return
    pytest.skip(f"there is a GPU: {gpu.name}")


def linear(folder: Path, name: str = "linear", *, operator: str = "MatMul", seed: int = 0) -> Path:
    """One product with constant weights, rows dynamic."""
    weights = np.random.default_rng(seed).normal(size=(8, 8)).astype(np.float32)
    described = [helper.make_tensor_value_info(one, TensorProto.FLOAT, ["rows", 8]) for one in ("x", "y")]
    nodes = [helper.make_node(operator, ["x", "w"], ["y"], domain="" if operator == "MatMul" else "com.example")]
    graph = helper.make_graph(nodes, "linear", described[:1], described[1:], [numpy_helper.from_array(weights, "w")])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.example", 1)]
    path = folder / f"{name}.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def malformed(library: Library, engine: bytes) -> bool:
    """Whether the library says of an engine's bytes that they are none; it can without a GPU."""
    runtime = library.module.Runtime(library.module.Logger(library.module.Logger.INTERNAL_ERROR))
    _, diagnostics = runtime.get_engine_validity(engine)
    return bool(diagnostics & library.module.EngineInvalidityDiagnostics.MALFORMED_ENGINE.value)


# Keys


@pytest.mark.parametrize(
    "changed",
    [
        {"library": "tensorrt"},
        {"version": "1.8.0"},
        {"compute_capabilities": ("89",)},
        {"system": "windows-x86_64"},
        {"precision": "fp16"},
        {"shapes": (ShapeRange("x", (1, 8), (4, 8), (32, 8)),)},
        {"onnx_sha256": "1" * 64},
    ],
)
def test_whatever_an_engine_depends_on_changes_its_key(changed: dict[str, object]) -> None:
    other = replace(KEY, **changed)  # type: ignore[arg-type]
    assert other.digest != KEY.digest
    assert replace(KEY).digest == KEY.digest
    assert len(KEY.digest) == 16


def test_shapes_are_in_order_and_hold_what_lies_between() -> None:
    assert SHAPES[0].holds((16, 8))
    for shape in ((17, 8), (4, 7), (4,), (0, 8)):
        assert not SHAPES[0].holds(shape)
    for given in (((2,), (1,), (3,)), ((1,), (2, 2), (3,)), ((-1,), (1,), (1,))):
        with pytest.raises(ValueError, match="shapes of x"):
            ShapeRange("x", *given)
    with pytest.raises(InputError, match=r"from \(1, 8\) to \(16, 8\), not \(17, 8\)"):
        check_shape("x", (17, 8), {"x": SHAPES[0]})


def test_a_gpu_that_is_too_small_is_refused_before_anything_is_loaded() -> None:
    engine = EngineFile("text", "engines/a.engine", "onnx/a.onnx", 5 << 30, KEY)
    check_memory(engine, Gpu("large", "86", 8 << 30))
    with pytest.raises(ProviderError, match=r"the text engine takes about 5\.0 GiB, and small has 4\.0") as refused:
        check_memory(engine, Gpu("small", "86", 4 << 30))
    assert "--precision" in refused.value.hint


# The store


def test_the_store_gives_back_what_it_was_given_and_nothing_that_was_changed(tmp_path: Path) -> None:
    store = EngineStore(tmp_path / "engines")
    assert store.find(KEY) is None
    path = store.keep(KEY, b"an engine")
    assert store.find(KEY) == path
    assert path.read_bytes() == b"an engine"
    assert store.find(replace(KEY, version="2")) is None
    assert json.loads(path.with_suffix(".json").read_text())["key"]["version"] == KEY.version
    path.write_bytes(b"an engino")
    assert store.find(KEY) is None
    path.with_suffix(".json").write_text("{")
    assert store.find(KEY) is None
    assert sorted(one.suffix for one in store.folder.iterdir()) == [".engine", ".json"]


# Real engines


def test_an_engine_is_built_without_a_gpu_for_each_compute_capability(library: Library, tmp_path: Path) -> None:
    source = linear(tmp_path)
    key = replace(KEY, version=library.version, system=system_name(), onnx_sha256=file_sha256(source))
    assert {"75", "86", "89", "120"} <= set(library.compute_capabilities)
    engines = {
        capability: build_engine(library, source, replace(key, compute_capabilities=(capability,)))
        for capability in ("86", "120")
    }
    assert len(set(engines.values())) == 2
    for engine in engines.values():
        assert not malformed(library, engine)
    assert malformed(library, b"x" * 64 + engines["86"][64:])
    with pytest.raises(ProviderError, match="for Turing"):
        build_engine(library, source, replace(key, compute_capabilities=("75",)))


def test_what_the_library_refuses_is_an_error_with_its_reason(library: Library, tmp_path: Path) -> None:
    unknown = linear(tmp_path, "unknown", operator="Unheard")
    with pytest.raises(ProviderError, match=r"cannot build unknown\.onnx: .*Unheard"):
        build_engine(library, unknown, KEY)
    source = linear(tmp_path)
    with pytest.raises(ProviderError, match=r"no shapes are given for its input x"):
        build_engine(library, source, replace(KEY, shapes=()))
    wrong = replace(KEY, shapes=(ShapeRange("x", (1, 4), (1, 4), (2, 4)),))
    with pytest.raises(ProviderError, match=r"its input x is \(-1, 8\), not \(1, 4\)"):
        build_engine(library, source, wrong)
    (tmp_path / "none.onnx").write_bytes(b"no graph")
    with pytest.raises(ProviderError, match=r"cannot build none\.onnx"):
        build_engine(library, tmp_path / "none.onnx", KEY)


def test_without_a_gpu_the_reason_is_told(library: Library, without_gpu: None, tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="tensorrt-rtx needs an NVIDIA GPU, and"):
        visible_gpu("tensorrt-rtx")
    source = linear(tmp_path)
    path = tmp_path / "linear.engine"
    path.write_bytes(build_engine(library, source, KEY))
    with pytest.raises(ProviderError, match=r"does not load linear\.engine: .*CUDA"):
        TensorRtEngine(path, library, SHAPES, tmp_path / "kernels")
    path.write_bytes(b"no engine")
    with pytest.raises(ProviderError, match=r"does not load linear\.engine"):
        TensorRtEngine(path, library, SHAPES, tmp_path / "kernels")


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_a_library_that_is_not_installed_is_named_with_its_extra() -> None:
    with pytest.raises(MissingExtraError) as refused:
        load_library("tensorrt")
    assert refused.value.hint == "pip install 'mechm[tensorrt]'"


@pytest.mark.gpu
def test_an_engine_runs(library: Library, tmp_path: Path) -> None:
    try:
        gpu = visible_gpu("tensorrt-rtx")
    except ProviderError as error:
        pytest.skip(str(error))
    source = linear(tmp_path)
    path = tmp_path / "linear.engine"
    path.write_bytes(build_engine(library, source, replace(KEY, compute_capabilities=(gpu.compute_capability,))))
    engine = TensorRtEngine(path, library, SHAPES, tmp_path / "kernels")
    weights = numpy_helper.to_array(onnx.load(source).graph.initializer[0])
    for rows in (1, 16, 4):
        x = np.random.default_rng(rows).normal(size=(rows, 8)).astype(np.float32)
        np.testing.assert_allclose(engine.run({"x": x})["y"], x @ weights, atol=1e-4)
    with pytest.raises(InputError, match="not"):
        engine.run({"x": np.zeros((17, 8), np.float32)})
