"""Exported graphs: their names and axes, and attention that is the same however it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mechm_export.gate.comparison import check_values
from mechm_export.graphs.attention import fuse_attention
from mechm_export.graphs.files import MICROSOFT, strip_provenance
from mechm_export.graphs.part import ExportPart
from mechm_export.graphs.signature import check_signature
from mechm_export.graphs.trace import export_graph
from mechm_export.parts import ModelParts
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.errors import VerificationError

PARTS = ("text", "audio", "scene", "expression", "fusion")


def part_of(model: ModelParts, name: str) -> ExportPart:
    (part,) = (part for part in model if part.name == name)
    return part


@pytest.fixture(scope="module")
def fused_text(tiny_parts: ModelParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text encoder exported once more, its attention fused."""
    path = tmp_path_factory.mktemp("fused") / "text.onnx"
    export_graph(part_of(tiny_parts, "text"), path, "fused")
    return path


# Signatures


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_exported_graphs_have_the_parts_signature(
    name: str, precision: str, tiny_parts: ModelParts, tiny_bundle: Path
) -> None:
    check_signature(part_of(tiny_parts, name), tiny_bundle / f"onnx/{name}.{precision}.onnx")


def rename_input(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name == "pixel_values":
                node.input[position] = "pixels"
    model.graph.input[0].name = "pixels"


def rename_output(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for position, name in enumerate(node.output):
            if name == "expression_logits":
                node.output[position] = "logits"
    model.graph.output[0].name = "logits"


def add_output(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Neg", ["expression_logits"], ["more"]))
    model.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["batch", 7]))


def drop_output(model: onnx.ModelProto) -> None:
    del model.graph.output[:]


def change_dtype(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def fix_the_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def free_the_width(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"


def change_the_width(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 8


def add_an_axis(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim.add().dim_value = 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rename_input, "unexpected names: pixels"),
        (rename_output, "unexpected names: expression_logits, logits"),
        (add_output, "unexpected names: more"),
        (drop_output, "unexpected names: expression_logits"),
        (change_dtype, "pixel_values is float16"),
        (fix_the_batch, "pixel_values has axes"),
        (free_the_width, "pixel_values has axes"),
        (change_the_width, "expression_logits has axes"),
        (add_an_axis, "pixel_values is float32"),
    ],
)
def test_another_signature_is_noticed(
    change: Callable[[onnx.ModelProto], None], words: str, tiny_parts: ModelParts, tiny_bundle: Path, tmp_path: Path
) -> None:
    model = onnx.load(tiny_bundle / "onnx/expression.fp32.onnx")
    change(model)
    onnx.save_model(model, tmp_path / "changed.onnx")
    part = part_of(tiny_parts, "expression")
    for check in (check_signature, lambda part, path: check_values(part, path, "int8")):
        with pytest.raises(VerificationError, match=words):
            check(part, tmp_path / "changed.onnx")


def test_an_input_that_is_not_used_may_be_absent(tiny_parts: ModelParts, tiny_bundle: Path) -> None:
    part = part_of(tiny_parts, "expression")
    more = replace(part, inputs=(*part.inputs, replace(part.inputs[0], name="unused")))
    check_signature(more, tiny_bundle / "onnx/expression.fp32.onnx")


# Attention


@pytest.mark.parametrize("sizes", [(1, 1), (1, 64), (2, 40), (5, 3)])
def test_fused_attention_equals_portable(
    sizes: tuple[int, int], fused_text: Path, tiny_parts: ModelParts, tiny_bundle: Path
) -> None:
    config = EngineConfig(n_threads=1)
    portable, fused = (
        OnnxRuntimeEngine(tiny_bundle / "onnx/text.fp32.onnx", config),
        OnnxRuntimeEngine(fused_text, config),
    )
    part = part_of(tiny_parts, "text")
    feeds = part.trial_inputs({"batch": sizes[0], "tokens": sizes[1]}, np.random.default_rng(3))
    kept = feeds["attention_mask"].astype(bool)
    states = [engine.run(feeds)["last_hidden_state"] for engine in (portable, fused)]
    states.append(part.reference(feeds)["last_hidden_state"])
    for one in states[1:]:
        assert one.shape == states[0].shape == (*sizes, 32)
        assert np.abs(one - states[0])[kept].max() < 1e-5


def test_a_fused_graph_is_fused(fused_text: Path, tiny_parts: ModelParts) -> None:
    operators = [node.op_type for node in onnx.load(fused_text).graph.node]
    assert operators.count("MultiHeadAttention") == tiny_parts.config.text.n_layers
    assert "Attention" not in operators
    assert check_values(part_of(tiny_parts, "text"), fused_text, "fp32").largest_difference < 1e-5


def test_exporting_leaves_the_module_as_it_was(fused_text: Path, tiny_parts: ModelParts) -> None:
    module = part_of(tiny_parts, "text").module
    implementations = {m.config._attn_implementation for m in module.modules() if hasattr(m, "config")
                       and hasattr(m.config, "_attn_implementation")}  # fmt: skip
    assert implementations == {"sdpa"}
    assert not module.training


B, H, T, S, D = 2, 2, 5, 7, 4


def attention_model(*nodes: onnx.NodeProto, mask: int | None = None) -> onnx.ModelProto:
    """A graph of Attention operators over q (B, H, T, D), k and v (B, H, S, D), and a mask (T, S) of some type."""
    shapes = {"q": [B, H, T, D], "k": [B, H, S, D], "v": [B, H, S, D]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    if mask is not None:
        inputs.append(helper.make_tensor_value_info("mask", mask, [T, S] if mask == TensorProto.BOOL else [1, 1, T, S]))
    outputs = [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, [B, H, T, D]) for node in nodes]
    graph = helper.make_graph(list(nodes), "attention", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def answers(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, feeds)]


@pytest.fixture
def feeds() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {"q": (B, H, T, D), "k": (B, H, S, D), "v": (B, H, S, D)}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("scale", [None, 0.25, 1.0])
@pytest.mark.parametrize("mask", [None, TensorProto.FLOAT])
def test_rewriting_changes_no_value(mask: int | None, scale: float | None, feeds: dict[str, np.ndarray]) -> None:
    names = ["q", "k", "v"] if mask is None else ["q", "k", "v", "mask"]
    attributes = {} if scale is None else {"scale": scale}
    nodes = [helper.make_node("Attention", names, [f"o{k}"], **attributes) for k in range(2)]
    model = attention_model(*nodes, mask=mask)
    if mask is not None:
        feeds["mask"] = np.random.default_rng(1).normal(size=(1, 1, T, S)).astype(np.float32)
    expected = answers(model, feeds)
    assert fuse_attention(model, H) == 2
    onnx.checker.check_model(model)
    assert [opset.domain for opset in model.opset_import].count(MICROSOFT) == 1
    for one, other in zip(answers(model, feeds), expected, strict=True):
        assert np.abs(one - other).max() < 1e-5


def test_a_boolean_mask_becomes_a_bias_once(feeds: dict[str, np.ndarray]) -> None:
    nodes = [helper.make_node("Attention", ["q", "k", "v", "mask"], [f"o{k}"]) for k in range(3)]
    model = attention_model(*nodes, mask=TensorProto.BOOL)
    feeds["mask"] = np.random.default_rng(1).random((T, S)) < 0.5
    feeds["mask"][:, 0] = True
    expected = answers(model, feeds)
    model.graph.input[3].type.tensor_type.shape.Clear()
    for size in (1, 1, T, S):
        model.graph.input[3].type.tensor_type.shape.dim.add().dim_value = size
    assert fuse_attention(model, H) == 3
    assert [node.op_type for node in model.graph.node].count("Where") == 1
    for one, other in zip(answers(model, {**feeds, "mask": feeds["mask"][None, None]}), expected, strict=True):
        assert np.abs(one - other).max() < 1e-5


@pytest.mark.parametrize("attributes", [{"is_causal": 1}, {"softcap": 2.0}, {"q_num_heads": 2, "kv_num_heads": 2}])
def test_an_attention_that_would_change_is_refused(attributes: dict[str, float]) -> None:
    model = attention_model(helper.make_node("Attention", ["q", "k", "v"], ["o"], **attributes))
    with pytest.raises(VerificationError, match=sorted(attributes)[0]):
        fuse_attention(model, H)


def test_a_cached_attention_is_refused() -> None:
    model = attention_model(helper.make_node("Attention", ["q", "k", "v", "", "past_key", "past_value"], ["o"]))
    with pytest.raises(VerificationError, match="past_key, past_value"):
        fuse_attention(model, H)


def test_a_graph_without_attention_is_left_alone() -> None:
    model = attention_model(helper.make_node("Neg", ["q"], ["o"]))
    before = model.SerializeToString()
    assert fuse_attention(model, H) == 0
    assert model.SerializeToString() == before


# Provenance


@pytest.mark.parametrize("name", PARTS)
def test_graphs_tell_nothing_of_the_machine(name: str, tiny_bundle: Path, repository: Path) -> None:
    for path in (tiny_bundle / "onnx").glob(f"{name}.*.onnx"):
        content = path.read_bytes()
        for secret in (str(repository), str(Path.home()), ".py", "site-packages"):
            assert secret.encode() not in content, f"{path.name} has {secret}"


def test_provenance_is_stripped_everywhere() -> None:
    said = "line 7 of model.py"
    value = helper.make_tensor_value_info("q", TensorProto.FLOAT, [1], doc_string=said)
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, [1], doc_string=said)
    node = helper.make_node("Add", ["q", "w"], ["o"], doc_string=said)
    node.metadata_props.add(key="stack", value=said)
    weights = numpy_helper.from_array(np.ones(1, np.float32), "w")
    weights.doc_string = said
    graph = helper.make_graph([node], "g", [value], [out], [weights], doc_string=said)
    model = helper.make_model(graph, doc_string=said)
    model.metadata_props.add(key="source", value=said)
    assert model.SerializeToString().count(said.encode()) == 8
    strip_provenance(model)
    assert said.encode() not in model.SerializeToString()
