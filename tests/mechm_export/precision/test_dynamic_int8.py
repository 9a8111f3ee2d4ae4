"""int8 forms: what is quantized and what is left, the error that rounding may make, and outlier channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mechm_export.graphs.part import Int8Recipe
from mechm_export.precision.dynamic_int8 import down_projections, matching_layers, quantize_embeddings, quantize_int8
from mechm_export.precision.smoothing import linear_layers, scale_tokens, smooth
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.errors import VerificationError

V, D, M = 50, 16, 64
OUTLIERS = (3, 11)


def mlp(*, outliers: float = 1.0) -> onnx.ModelProto:
    """Word vectors, up projection, GELU, down projection; two channels of the vectors may be far larger than others."""
    random = np.random.default_rng(0)
    table = random.normal(size=(V, D)).astype(np.float32)
    table[:, OUTLIERS] *= outliers
    # As a trained layer does, this one reads a loud channel with small weights.
    up = random.normal(size=(D, M)).astype(np.float32) / 4
    up[OUTLIERS, :] /= outliers
    constants = {
        "table": table,
        "up": up,
        "down": random.normal(size=(M, D)).astype(np.float32) / 8,
        "bias": random.normal(size=M).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"], name="lookup"),
        helper.make_node("MatMul", ["words", "up"], ["raised"], name="up_proj"),
        helper.make_node("Add", ["raised", "bias"], ["biased"], name="add"),
        helper.make_node("Gelu", ["biased"], ["active"], name="gelu"),
        helper.make_node("MatMul", ["active", "down"], ["states"], name="down_proj"),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info("states", TensorProto.FLOAT, ["batch", "tokens", D])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def ids(seed: int = 0) -> dict[str, np.ndarray]:
    return {"input_ids": np.random.default_rng(seed).integers(0, V, (4, 9))}


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.checker.check_model(model)
    onnx.save_model(model, path)
    return path


def states(path: Path) -> np.ndarray:
    return OnnxRuntimeEngine(path, EngineConfig(n_threads=1)).run(ids(1))["states"]


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def error_of(recipe: Int8Recipe, tmp_path: Path, *, outliers: float = 1.0) -> float:
    """Root mean square error of a recipe, as a share of the states' own size."""
    source = saved(mlp(outliers=outliers), tmp_path / "source.onnx")
    quantize_int8(source, tmp_path / "int8.onnx", recipe, [ids(2), ids(3)])
    exact = states(source)
    return float(np.sqrt(np.mean((states(tmp_path / "int8.onnx") - exact) ** 2) / np.mean(exact**2)))


@pytest.mark.usefixtures("exact_int8")
def test_a_plain_recipe_quantizes_every_linear_layer(tmp_path: Path) -> None:
    assert error_of(Int8Recipe(), tmp_path) < 0.02
    found = operators(tmp_path / "int8.onnx")
    assert found.count("MatMulInteger") == 2
    assert "MatMul" not in found
    assert (tmp_path / "int8.onnx").stat().st_size < (tmp_path / "source.onnx").stat().st_size


def test_the_source_stays_as_it_was(tmp_path: Path) -> None:
    source = saved(mlp(), tmp_path / "source.onnx")
    before = source.read_bytes()
    recipe = Int8Recipe(smoothing=0.5, keep_down_projections=True, embeddings=True)
    quantize_int8(source, tmp_path / "int8.onnx", recipe, [ids()])
    assert source.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8.onnx", "source.onnx"]


def test_down_projections_are_those_that_narrow(tmp_path: Path) -> None:
    assert down_projections(mlp()) == ["down_proj"]
    error_of(Int8Recipe(keep_down_projections=True), tmp_path)
    kept = [node for node in onnx.load(tmp_path / "int8.onnx").graph.node if node.op_type == "MatMul"]
    assert [node.name for node in kept] == ["down_proj"]
    assert error_of(Int8Recipe(keep_down_projections=True), tmp_path) < error_of(Int8Recipe(), tmp_path)


def test_word_vectors_are_rounded_row_by_row(tmp_path: Path) -> None:
    model = mlp()
    table = numpy_helper.to_array(model.graph.initializer[0]).copy()
    table[7] *= 1000  # a loud row blurs no other
    table[8] = 0
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(table, "table"))
    quantize_embeddings(model)
    onnx.checker.check_model(model)
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    assert "table" not in constants
    assert constants["embedding_rows"].dtype == np.int8
    rounded = constants["embedding_rows"] * constants["embedding_scale"]
    assert (np.abs(rounded - table).max(1) <= np.abs(table).max(1) / 127 / 2 * 1.001).all()
    model.graph.output.append(helper.make_tensor_value_info("words", TensorProto.FLOAT, [None, None, D]))
    words = OnnxRuntimeEngine(saved(model, tmp_path / "m.onnx"), EngineConfig()).run(ids())["words"]
    assert np.abs(words - rounded[ids()["input_ids"]]).max() < 1e-6


def test_nothing_to_quantize_is_an_error(tmp_path: Path) -> None:
    model = mlp()
    with pytest.raises(VerificationError, match=r"source\.onnx has no Conv"):
        quantize_int8(saved(model, tmp_path / "source.onnx"), tmp_path / "int8.onnx", Int8Recipe(("Conv",)))
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("Gather", ["down", "input_ids"], ["states"], name="other"))
    quantize_embeddings(model)
    del model.graph.node[:]
    with pytest.raises(VerificationError, match="no embedding table"):
        quantize_embeddings(model)


# Outlier channels


@pytest.mark.parametrize("strength", [0.2, 0.5, 0.8, 1.0])
def test_smoothing_changes_nothing_in_fp32(strength: float, tmp_path: Path) -> None:
    model = mlp(outliers=100.0)
    exact = states(saved(model, tmp_path / "plain.onnx"))
    smooth(model, [ids(2), ids(3)], strength)
    smoothed = states(saved(model, tmp_path / "smooth.onnx"))
    assert np.abs(smoothed - exact).max() < 1e-4 * np.abs(exact).max()
    assert [node.name for node in linear_layers(model)] == ["up_proj", "down_proj"]


def test_smoothing_evens_out_the_channels() -> None:
    model = mlp(outliers=100.0)
    smooth(model, [ids(2)], 1.0)
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    (factors,) = (
        constants[node.input[1]] for node in model.graph.node if node.op_type == "Mul" and "words" in node.input
    )
    words = constants["table"][ids(2)["input_ids"]]
    before, after = (np.abs(value).reshape(-1, D).max(0) for value in (words, words * factors))
    assert before.max() / np.median(before) > 50
    assert after.max() / after.min() < 1.001


@pytest.mark.usefixtures("exact_int8")
def test_smoothing_saves_what_outliers_cost(tmp_path: Path) -> None:
    plain = error_of(Int8Recipe(keep_down_projections=True), tmp_path, outliers=100.0)
    smoothed = error_of(Int8Recipe(keep_down_projections=True, smoothing=0.5), tmp_path, outliers=100.0)
    assert plain > 0.1, "outliers hurt"
    assert smoothed < plain / 10


def test_a_scale_a_token_changes_nothing_in_fp32(tmp_path: Path) -> None:
    model = mlp(outliers=100.0)
    exact = states(saved(model, tmp_path / "plain.onnx"))
    scale_tokens(model)
    onnx.checker.check_model(model)
    scaled = states(saved(model, tmp_path / "scaled.onnx"))
    assert np.abs(scaled - exact).max() < 1e-5 * np.abs(exact).max()
    assert [node.name for node in linear_layers(model)] == ["up_proj", "down_proj"]


def test_a_token_of_zeros_stays_one(tmp_path: Path) -> None:
    model = mlp()
    table = next(i for i in model.graph.initializer if i.name == "table")
    table.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(table)), "table"))
    exact = states(saved(model, tmp_path / "plain.onnx"))
    scale_tokens(model)
    np.testing.assert_allclose(states(saved(model, tmp_path / "scaled.onnx")), exact, atol=1e-6)


@pytest.mark.usefixtures("exact_int8")
def test_a_scale_a_token_saves_what_one_large_token_costs(tmp_path: Path) -> None:
    """Of a table with one word a thousand times larger, the other words keep their values."""
    model = mlp()
    table = next(i for i in model.graph.initializer if i.name == "table")
    rows = numpy_helper.to_array(table).copy()
    asked = ids(1)["input_ids"]
    loud = int(asked.flat[0])
    rows[loud] *= 1000
    table.CopyFrom(numpy_helper.from_array(rows, "table"))
    source = saved(model, tmp_path / "source.onnx")
    others = asked != loud
    exact = states(source)[others]

    def error(recipe: Int8Recipe) -> float:
        quantize_int8(source, tmp_path / "int8.onnx", recipe)
        return float(np.abs(states(tmp_path / "int8.onnx")[others] - exact).max() / np.abs(exact).max())

    assert error(Int8Recipe()) > 0.3
    assert error(Int8Recipe(token_scales=True)) < 0.03


def test_layers_with_one_input_share_their_factors() -> None:
    """Query, key and value read the same tensor: it is divided once."""
    model = mlp()
    for name in ("left", "right"):
        up = numpy_helper.to_array(next(i for i in model.graph.initializer if i.name == "up"))
        model.graph.initializer.append(numpy_helper.from_array(up * 2, f"{name}_weights"))
        model.graph.node.append(helper.make_node("MatMul", ["words", f"{name}_weights"], [name], name=name))
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None, M]))
    smooth(model, [ids()], 0.5)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node].count("Mul") == 2
    readers = {node.input[0] for node in model.graph.node if node.name in ("up_proj", "left", "right")}
    assert len(readers) == 1


def test_smoothing_without_inputs_is_refused() -> None:
    with pytest.raises(VerificationError, match="at least one input"):
        smooth(mlp(), [], 0.5)


# Layers that are kept


def test_a_layer_is_found_by_its_weights_where_the_exporter_numbered_anew(tmp_path: Path) -> None:
    model, other = mlp(), mlp()
    for number, node in enumerate(other.graph.node):
        node.name = f"node_{number}"
    assert matching_layers(model, ["down_proj"], other) == ["node_4"]
    quantize_int8(saved(other, tmp_path / "fp32.onnx"), tmp_path / "int8.onnx", Int8Recipe(), fp32_nodes=["node_4"])
    assert operators(tmp_path / "int8.onnx").count("MatMulInteger") == 1
    assert operators(tmp_path / "int8.onnx").count("MatMul") == 1
    with pytest.raises(VerificationError, match="gelu is no layer with weights"):
        matching_layers(model, ["gelu"], other)
    del other.graph.node[-1]
    with pytest.raises(VerificationError, match="no layer with the weights of down_proj"):
        matching_layers(model, ["down_proj"], other)
