"""fp16, bf16 and static int8 in plain ONNX: which types are where, what stays in fp32, and how near the answers are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mechm_export.precision.half import LARGEST, HalfPrecision, half_nodes, round_to, to_half
from mechm_export.precision.lower import LowerPrecision, lower_graph
from mechm_export.precision.simulated import simulate_half
from mechm_export.precision.static_int8 import load_smoothed, quantizable_nodes
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.errors import VerificationError

V, D = 40, 16
TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def attention_like() -> onnx.ModelProto:
    """Word vectors, angles of their positions, a norm, a product, a masked softmax, and a branch that is never on."""
    random = np.random.default_rng(0)
    constants = {
        "table": random.normal(size=(V, D)).astype(np.float32),
        "frequencies": np.geomspace(1, 1e-3, D).astype(np.float32)[None],
        "scale": np.ones(D, np.float32),
        "shift": np.zeros(D, np.float32),
        "weights": random.normal(size=(D, D)).astype(np.float32) / 4,
        "other": random.normal(size=(D, D)).astype(np.float32) / 4,
        "masked": np.array(-3e38, np.float32),
        "zero": np.array(0, np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["words"], name="lookup"),
        helper.make_node("Cast", ["positions"], ["places"], name="places", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["places", "frequencies"], ["angles"], name="angles"),
        helper.make_node("Cos", ["angles"], ["turns"], name="turns"),
        helper.make_node("Mul", ["words", "turns"], ["turned"], name="turn"),
        helper.make_node("LayerNormalization", ["turned", "scale", "shift"], ["normed"], name="norm", axis=-1),
        helper.make_node("MatMul", ["normed", "weights"], ["states"], name="linear"),
        helper.make_node("MatMul", ["silent", "other"], ["nothing"], name="never_on"),
        helper.make_node("Add", ["states", "nothing"], ["sums"], name="sum"),
        helper.make_node("Transpose", ["sums"], ["turned_round"], name="transpose", perm=[1, 0]),
        helper.make_node("MatMul", ["sums", "turned_round"], ["scores"], name="scores"),
        helper.make_node("Where", ["mask", "zero", "masked"], ["bias"], name="bias"),
        helper.make_node("Add", ["scores", "bias"], ["biased"], name="add_bias"),
        helper.make_node("Softmax", ["biased"], ["shares"], name="softmax", axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "attention",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("positions", TensorProto.INT64, ["n", 1]),
            helper.make_tensor_value_info("silent", TensorProto.FLOAT, ["n", D]),
            helper.make_tensor_value_info("mask", TensorProto.BOOL, ["n", "n"]),
        ],
        [helper.make_tensor_value_info("shares", TensorProto.FLOAT, ["n", "n"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def feed(n: int = 12) -> dict[str, npt.NDArray[np.generic]]:
    random = np.random.default_rng(n)
    mask = random.random((n, n)) < 0.8
    mask[:, 0] = True
    return {
        "ids": random.integers(0, V, n),
        "positions": 2000 + np.arange(n)[:, None],
        "silent": np.zeros((n, D), np.float32),
        "mask": mask,
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    onnx.checker.check_model(attention_like(), full_check=True)
    onnx.save_model(attention_like(), tmp_path / "source.onnx")
    return tmp_path / "source.onnx"


def answers(path: Path) -> npt.NDArray[np.float32]:
    return np.asarray(OnnxRuntimeEngine(path, EngineConfig()).run(feed())["shares"])


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    return {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_norms_softmax_and_angles_stay_in_fp32(precision: HalfPrecision) -> None:
    model = attention_like()
    assert to_half(model, precision) == 8
    onnx.checker.check_model(model, full_check=True)
    types = types_of(model)
    nodes = {node.name: node for node in model.graph.node}
    half = {
        name for name, node in nodes.items() if types[node.output[0]] == TYPES[precision] and node.op_type != "Cast"
    }
    assert half == {"lookup", "turn", "linear", "never_on", "sum", "transpose", "scores", "bias", "add_bias"}
    for name in ("angles", "turns", "norm", "softmax"):
        assert all(types.get(one, TensorProto.FLOAT) == TensorProto.FLOAT for one in nodes[name].input)
    assert types["shares"] == types["silent"] == TensorProto.FLOAT
    constants = {i.name: i for i in model.graph.initializer}
    assert constants[f"weights_{precision}"].data_type == TYPES[precision]
    assert "weights" not in constants, "the weights in fp32 would be carried for nothing"


def test_what_is_kept_stays_in_fp32_and_the_others_do_not() -> None:
    model = attention_like()
    assert to_half(model, "fp16", ["linear", "transpose"]) == 7
    onnx.checker.check_model(model, full_check=True)
    types = types_of(model)
    nodes = {node.name: node for node in model.graph.node}
    assert types[nodes["linear"].output[0]] == types[nodes["transpose"].output[0]] == TensorProto.FLOAT
    assert types[nodes["scores"].output[0]] == TensorProto.FLOAT16


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_answers_are_near(source: Path, precision: LowerPrecision) -> None:
    lower_graph(source, source.with_name("low.onnx"), precision, [feed(), feed(7)])
    difference = np.abs(answers(source.with_name("low.onnx")) - answers(source)).max()
    assert 0 < difference < 0.05


def test_a_mask_beyond_the_range_becomes_the_largest_value_and_not_infinite() -> None:
    values = np.array([-3.4e38, 7.0, -np.inf, 1e-9], np.float32)
    assert round_to(values, "fp16").tolist() == [-LARGEST["fp16"], 7.0, -LARGEST["fp16"], 0.0]
    assert np.isfinite(np.asarray(round_to(values, "bf16"), np.float32)).all()
    assert LARGEST["fp16"] == np.finfo(np.float16).max
    assert LARGEST["bf16"] == float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)


def chain(nodes: list[onnx.NodeProto], constants: dict[str, Any] | None = None) -> onnx.ModelProto:
    """Operators from `x` (n, 4) to `y`, without names, beside a square matrix `w` and what else is given."""
    given = {"w": np.eye(4, dtype=np.float32), **(constants or {})}
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in given.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def lowered(model: onnx.ModelProto, precision: HalfPrecision = "fp16") -> list[str]:
    """Convert a graph; what its lowered nodes computed, by the names before."""
    to_half(model, precision)
    onnx.checker.check_model(model, full_check=True)
    suffix = f"_{precision}"
    results = [node.output[0] for node in model.graph.node if node.op_type != "Cast"]
    return [name.removesuffix(suffix) for name in results if name.endswith(suffix)]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_a_cast_to_16_bits_makes_no_integer(kind: int) -> None:
    """A graph that names 16 bits here and there, as one from under autocast does, is lowered all the same."""
    product = helper.make_node("MatMul", ["x", "w"], ["product"])
    narrow = helper.make_node("Cast", ["product"], ["narrow"], to=kind)
    wide = helper.make_node("Cast", ["narrow"], ["wide"], to=TensorProto.FLOAT)
    assert lowered(chain([product, narrow, wide, helper.make_node("MatMul", ["wide", "w"], ["y"])])) == ["product", "y"]


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.INT8, TensorProto.BOOL])
def test_what_becomes_whole_stays_in_fp32_on_every_way_there(kind: int) -> None:
    """A rounding before an index is another index, even where the graph itself goes through 16 bits."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["bucket"]),
        helper.make_node("Cast", ["bucket"], ["narrow"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["narrow"], ["index"], to=kind),
        helper.make_node("Cast", ["index"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["number", "w"], ["y"]),
    ]
    assert lowered(chain(nodes)) == ["y"]


def test_a_mean_over_time_stays_in_fp32() -> None:
    """A sum of thousands is beyond fp16, and so may its count be; their quotient is not lowered between them."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["states"]),
        helper.make_node("ReduceSum", ["states", "axis"], ["sum"], keepdims=1),
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["whole", "axis"], ["n"], keepdims=1),
        helper.make_node("Cast", ["n"], ["count"], to=TensorProto.FLOAT),
        helper.make_node("Clip", ["count", "one"], ["at_least_one"]),
        helper.make_node("Div", ["sum", "at_least_one"], ["mean"]),
        helper.make_node("MatMul", ["mean", "w"], ["y"]),
    ]
    model = chain(nodes, constants={"axis": np.array([0]), "one": np.float32(1)})
    x = np.full((3000, 4), 100, np.float32)
    assert lowered(model) == ["states", "y"]
    session = onnxruntime.InferenceSession(simulate_half(model).SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": x})[0] == pytest.approx(np.ones((1, 4)), rel=1e-2)


def test_inputs_and_outputs_of_16_bits_keep_them_where_roundings_are_computed() -> None:
    """A Llama's memory of what it has read comes and goes in fp16."""
    described = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["n"]) for name in ("past", "twice", "more")]
    nodes = [
        helper.make_node("Add", ["past", "past"], ["twice"]),
        helper.make_node("Add", ["twice", "past"], ["more"]),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "memory", described[:1], described[1:]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    twin = simulate_half(model)
    assert [value.type.tensor_type.elem_type for value in (*twin.graph.input, *twin.graph.output)] == [10, 10, 10]
    session = onnxruntime.InferenceSession(twin.SerializeToString(), providers=["CPUExecutionProvider"])
    past = np.array([0.1, 1 / 3, 30000.0], np.float16)
    twice, more = (np.asarray(value) for value in session.run(None, {"past": past}))
    assert twice.dtype == more.dtype == np.float16
    assert np.array_equal(twice, past + past)
    with np.errstate(over="ignore"):
        assert np.array_equal(more, past + past + past), "beyond its range it is infinite, as on a GPU"


def test_branches_stay_in_fp32_and_read_what_is_lowered_around_them() -> None:
    bodies = {
        name: helper.make_graph(
            [helper.make_node(operator, ["product", "w"], [f"{name}_result"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_result", TensorProto.FLOAT, ["n", 4])],
        )
        for name, operator in (("then_branch", "MatMul"), ("else_branch", "Add"))
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("If", ["on"], ["chosen"], **bodies),
        helper.make_node("MatMul", ["chosen", "w"], ["y"]),
    ]
    model = chain(nodes, constants={"on": np.array(True)})
    assert lowered(model) == ["product", "y"]
    session = onnxruntime.InferenceSession(simulate_half(model).SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    assert session.run(None, {"x": x})[0].tolist() == x.tolist()


def test_a_type_that_is_not_known_is_refused() -> None:
    strange = helper.make_node("Mystery", ["x"], ["seen"], domain="elsewhere")
    model = chain([strange, helper.make_node("MatMul", ["seen", "w"], ["y"])])
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    with pytest.raises(VerificationError, match=r"the type of seen \(Mystery\) is not known"):
        to_half(model, "fp16")


def test_an_operator_without_the_type_is_left_out() -> None:
    random = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6])],
        [numpy_helper.from_array(random, "w")],
    )
    for opset, precision, names in ((18, "fp16", ["conv"]), (18, "bf16", []), (22, "bf16", ["conv"])):
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        assert [node.name for node in half_nodes(model, precision)] == names  # type: ignore[arg-type]
    with pytest.raises(VerificationError, match="nothing in the graph can be computed in bf16"):
        to_half(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), "bf16")


# Static int8


def test_static_int8_is_symmetric_and_a_column_has_its_own_scale(source: Path) -> None:
    target = source.with_name("int8.onnx")
    lower_graph(source, target, "int8", [feed(), feed(7)])
    graph = onnx.load(target).graph
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    steps = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert steps
    assert all(not np.any(constants[node.input[2]]) and constants[node.input[2]].dtype == np.int8 for node in steps)
    (weights,) = (node for node in steps if node.input[0] in constants)
    assert constants[weights.input[0]].dtype == np.int8
    assert constants[weights.input[1]].shape == (D,)
    (activation,) = (node for node in steps if node.op_type == "QuantizeLinear")
    peak = quantizable_nodes(load_smoothed(source, [feed(), feed(7)]), [feed(), feed(7)])["linear"]
    assert float(constants[activation.input[1]]) == pytest.approx(peak / 127, rel=1e-5)


def test_what_was_never_on_has_no_scale_and_stays_in_fp32(source: Path) -> None:
    """Calibration on words alone tells nothing of what a face branch will see."""
    assert list(quantizable_nodes(load_smoothed(source, [feed()]), [feed()])) == ["linear"]
    loud = {**feed(), "silent": np.ones((12, D), np.float32)}
    assert list(quantizable_nodes(load_smoothed(source, [loud]), [loud])) == ["linear", "never_on"]


def test_a_convolution_over_recordings_of_several_lengths_has_one_scale(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "frames"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, "shorter"])],
        [numpy_helper.from_array(random.normal(size=(4, 3, 3)).astype(np.float32), "w")],
    )
    source = tmp_path / "conv.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), source)
    lengths: list[dict[str, npt.NDArray[np.generic]]] = [
        {"x": random.normal(size=(1, 3, n)).astype(np.float32)} for n in (20, 50, 20)
    ]
    peak = max(float(np.abs(one["x"]).max()) for one in lengths)
    assert quantizable_nodes(onnx.load(source), lengths) == {"conv": pytest.approx(peak)}
    lower_graph(source, tmp_path / "int8.onnx", "int8", lengths)
    exact, found = (
        OnnxRuntimeEngine(path, EngineConfig()).run(lengths[1])["y"] for path in (source, tmp_path / "int8.onnx")
    )
    assert 0 < np.linalg.norm(found - exact) < 0.02 * np.linalg.norm(exact)


def test_what_cannot_be_lowered_is_refused(source: Path) -> None:
    target = source.with_name("low.onnx")
    with pytest.raises(VerificationError, match="needs real inputs"):
        lower_graph(source, target, "int8", [])
    with pytest.raises(VerificationError, match="no node elsewhere"):
        lower_graph(source, target, "int8", [feed()], ["elsewhere"])
    with pytest.raises(VerificationError, match="no node elsewhere"):
        lower_graph(source, target, "fp16", [], ["elsewhere"])
    with pytest.raises(VerificationError, match="nothing to quantize"):
        lower_graph(source, target, "int8", [feed()], ["linear"])
    assert not target.exists()
