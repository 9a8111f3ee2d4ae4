"""Convolutions as matrix products: the same values at every length, and what is not one is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mechm_export.graphs.part import Int8Recipe
from mechm_export.precision.conv_to_matmul import MIN_CHANNELS, convert_convolutions
from mechm_export.precision.dynamic_int8 import quantize_int8
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine

C = MIN_CHANNELS


def convolution(shape: tuple[int, ...], path: Path, **attributes: Any) -> Path:
    """A graph of one convolution with a bias. shape: of its weights."""
    random = np.random.default_rng(0)
    weights = {"w": random.normal(size=shape).astype(np.float32), "b": random.normal(size=shape[0]).astype(np.float32)}
    n_channels = shape[1] * attributes.get("group", 1)
    axes = ["batch", n_channels, *(f"axis_{number}" for number in range(len(shape) - 2))]
    out = ["batch", shape[0], *(f"shorter_{number}" for number in range(len(shape) - 2))]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", **attributes)],
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("pads", [(0, 0), (1, 1), (2, 0)])
def test_values_are_the_same_at_every_length(kernel: int, stride: int, pads: tuple[int, int], tmp_path: Path) -> None:
    source = convolution((8, C, kernel), tmp_path / "conv.onnx", strides=[stride], pads=list(pads))
    model = onnx.load(source)
    assert convert_convolutions(model) == 1
    assert not any(node.op_type == "Conv" for node in model.graph.node)
    assert {i.name for i in model.graph.initializer if i.name in "wb"} == {"b"}, (
        "the old weights would be carried along"
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, tmp_path / "unfolded.onnx")
    exact, found = (OnnxRuntimeEngine(path, EngineConfig()) for path in (source, tmp_path / "unfolded.onnx"))
    for length in (5, 6, 7, 50):
        x = {"x": np.random.default_rng(length).normal(size=(2, C, length)).astype(np.float32)}
        np.testing.assert_allclose(found.run(x)["y"], exact.run(x)["y"], atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        ((8, C, 3), {"group": 4}),
        ((8, C, 3), {"dilations": [2]}),
        ((8, C, 3), {"auto_pad": "SAME_UPPER"}),
        ((8, C - 1, 3), {}),
        ((8, C, 3, 3), {}),
    ],
)
def test_what_is_no_product_of_slices_is_left(
    shape: tuple[int, ...], attributes: dict[str, Any], tmp_path: Path
) -> None:
    model = onnx.load(convolution(shape, tmp_path / "conv.onnx", **attributes))
    before = model.SerializeToString(deterministic=True)
    assert convert_convolutions(model) == 0
    assert model.SerializeToString(deterministic=True) == before


def test_the_products_become_int8(tmp_path: Path) -> None:
    source = convolution((8, C, 3), tmp_path / "conv.onnx", pads=[1, 1])
    quantize_int8(source, tmp_path / "int8.onnx", Int8Recipe(conv_to_matmul=True))
    operators = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert operators.count("MatMulInteger") == 1
    x = {"x": np.random.default_rng(1).normal(size=(1, C, 40)).astype(np.float32)}
    exact, found = (OnnxRuntimeEngine(path, EngineConfig()).run(x)["y"] for path in (source, tmp_path / "int8.onnx"))
    assert 0 < np.linalg.norm(found - exact) < 0.02 * np.linalg.norm(exact)
