"""Multiplications and bytes are those that one counts by hand, whatever onnxruntime makes of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mechm.bench.graph_cost import GraphCost, count_events, graph_cost
from mechm.bench.limits import Limits

LIMITS = Limits(n_threads=1, fp32_gflops=100.0, int8_gops=400.0, memory_gbs=10.0)


def saved(path: Path, nodes: Sequence[onnx.NodeProto], constants: dict[str, np.ndarray], out: str) -> Path:
    """A graph from `x`, float (1, 8, 16), to `out`."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 8, 16))],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.fixture
def x() -> dict[str, np.ndarray]:
    return {"x": np.ones((1, 8, 16), np.float32)}


def test_a_product_with_weights_reads_them(tmp_path: Path, x: dict[str, np.ndarray]) -> None:
    weight = np.ones((16, 32), np.float32)
    path = saved(tmp_path / "a.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}, "y")
    moved = 4 * (8 * 16 + 8 * 32)
    assert graph_cost(path, x) == GraphCost(2 * 8 * 16 * 32, 0, weight.nbytes + moved)


def test_a_product_of_two_activations_reads_no_weights(tmp_path: Path, x: dict[str, np.ndarray]) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    cost = graph_cost(saved(tmp_path / "a.onnx", nodes, {}, "y"), x)
    assert cost.operations == 2 * 8 * 16 * 8
    assert cost.n_bytes == 4 * (8 * 16 + 8 * 8)


def test_int8_products_count_as_int8(tmp_path: Path, x: dict[str, np.ndarray]) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
    ]
    weight = np.ones((16, 32), np.int8)
    cost = graph_cost(saved(tmp_path / "a.onnx", nodes, {"w": weight}, "y"), x)
    assert (cost.fp32_operations, cost.int8_operations) == (0, 2 * 8 * 16 * 32)
    assert cost.n_bytes == weight.nbytes + 4 * (8 * 16 + 8 * 32)


def test_a_convolution_counts_every_weight_at_every_place(tmp_path: Path, x: dict[str, np.ndarray]) -> None:
    weight = np.ones((4, 8, 3), np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3], pads=[1, 1])]
    cost = graph_cost(saved(tmp_path / "a.onnx", nodes, {"w": weight}, "y"), x)
    assert cost.operations == 2 * (4 * 16) * (8 * 3)


def test_fused_attention_counts_as_its_two_products() -> None:
    shapes = [{"float": [2, 5, 12]}, {"float": [2, 7, 12]}, {"float": [2, 7, 12]}]
    arguments = {"op_name": "MultiHeadAttention", "input_type_shape": shapes, "output_type_shape": shapes[:1]}
    event = {"cat": "Node", "name": "a_kernel_time", "args": arguments}
    assert count_events([event]).fp32_operations == 2 * (2 * 2 * 5 * 7 * 12)


def test_an_operator_that_should_have_been_counted_is_named() -> None:
    shapes = [{"float": [2, 5, 12]}]
    event = {
        "cat": "Node",
        "name": "a_kernel_time",
        "args": {"op_name": "SparseAttention", "input_type_shape": shapes, "output_type_shape": shapes},
    }
    assert count_events([event]).uncounted == ("SparseAttention",)


def test_the_least_time_is_that_of_the_tighter_limit() -> None:
    assert GraphCost(100_000_000, 0, 1).ideal_ms(LIMITS) == pytest.approx(1.0)
    assert GraphCost(100_000_000, 400_000_000, 1).ideal_ms(LIMITS) == pytest.approx(2.0)
    assert GraphCost(1, 0, 50_000_000).ideal_ms(LIMITS) == pytest.approx(5.0)
