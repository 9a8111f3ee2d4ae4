"""fp16, bf16 and int8: what is lowered and what is not, what is let through, and what cannot be asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mechm_export.check_data import check_conversations
from mechm_export.encoders import export as export_module
from mechm_export.encoders.axes import Axes, check_opset, parse_axes
from mechm_export.encoders.check import EncoderCheck, check_encoder, padding_difference
from mechm_export.encoders.export import convert_graph, export_encoder
from mechm_export.encoders.part import encoder_part
from mechm_export.encoders.report import FILES, REPORT, EncoderReport
from mechm_export.encoders.source import find_source
from mechm_export.graphs import files as onnx_graph
from mechm_export.graphs.trace import export_graph
from mechm_export.precision.lower import lower_graph
from mechm_export.precision.simulated import SimulatedHalfRunner
from mechm_export.precision.tensor_types import element_types
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.errors import BundleError, InputError, VerificationError, WeightsError

Folders = Callable[[str], Path]


@pytest.fixture(scope="module")
def bert(encoders: Folders, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EncoderReport]:
    """BERT in all four precisions."""
    out = tmp_path_factory.mktemp("precisions") / "out"
    conversations = [one.conversation for one in check_conversations()]
    report = export_encoder(
        str(encoders("bert")), out, precisions=("int8", "bf16", "fp16", "fp32"), conversations=conversations
    )
    return out, report


def test_every_precision_is_written_and_reported(bert: tuple[Path, EncoderReport]) -> None:
    out, report = bert
    assert [graph.precision for graph in report.graphs] == ["fp32", "fp16", "bf16", "int8"]
    assert [graph.opset for graph in report.graphs] == [18, 18, 22, 23]
    assert not report.refused
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in out.iterdir()} == {*FILES.values(), "config.json", REPORT, *tokenizer}
    written = json.loads((out / REPORT).read_text())
    assert written["source"] == "bert"
    assert str(out.parent) not in (out / REPORT).read_text()
    for graph in report.graphs:
        facts = written["graphs"][graph.precision]
        assert facts["files"][FILES[graph.precision]]["size_bytes"] == (out / FILES[graph.precision]).stat().st_size
        assert facts["check"]["cosine"] == graph.check.cosine > 0.99
        differences = [one.check.largest_difference for one in report.graphs]
    assert differences[0] < differences[1] < differences[2]  # 24, 11 and 8 bits


@pytest.mark.parametrize(("precision", "kind"), [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)])
def test_products_are_lowered_and_norms_are_not(precision: str, kind: int, bert: tuple[Path, EncoderReport]) -> None:
    model = onnx.load(bert[0] / FILES[precision])  # type: ignore[index]
    types = element_types(model)
    produced = {op: {types[node.output[0]] for node in model.graph.node if node.op_type == op} for op in
                ("MatMul", "LayerNormalization", "Softmax", "ReduceSum")}  # fmt: skip
    assert produced["MatMul"] == {kind}
    assert produced["LayerNormalization"] == produced["Softmax"] == produced["ReduceSum"] == {TensorProto.FLOAT}
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    matrices = [one for one in model.graph.initializer if len(one.dims) == 2 and one.data_type in floats]
    assert {tensor.data_type for tensor in matrices} == {kind}
    assert [value.type.tensor_type.elem_type for value in model.graph.output] == [TensorProto.FLOAT]


def graph_of(
    nodes: list[onnx.NodeProto], path: Path, weights: dict[str, np.ndarray[Any, Any]], opset: int = 18
) -> Path:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y")]
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return path


def test_an_overflow_is_seen_that_the_cpu_hides(tmp_path: Path) -> None:
    """A product beyond fp16's range, scaled back: onnxruntime's CPU kernels compute it in fp32 and say nothing."""
    nodes = [
        helper.make_node("MatMul", ["x", "large"], ["far"]),
        helper.make_node("Mul", ["far", "small"], ["y"]),
    ]
    weights = {"large": np.full((4, 4), 300, np.float32), "small": np.full(1, 0.01, np.float32)}
    source = graph_of(nodes, tmp_path / "model.onnx", weights)
    feeds = {"x": np.full((1, 4), 100, np.float32)}
    lower_graph(source, tmp_path / "half.onnx", "fp16")
    assert np.isinf(SimulatedHalfRunner(tmp_path / "half.onnx").run(feeds)["y"]).all()
    lower_graph(source, tmp_path / "brain.onnx", "bf16")
    seen = SimulatedHalfRunner(tmp_path / "brain.onnx").run(feeds)["y"]
    assert np.abs(seen / 1200 - 1).max() < 0.01
    assert not list(tmp_path.glob("*.rounded.onnx"))


def test_what_stays_in_fp32_leaves_its_source(tmp_path: Path) -> None:
    """Weights beside the source, a norm's among them, are in or beside the lowered graph alone."""
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale"], ["normed"]),
        helper.make_node("MatMul", ["normed", "matrix"], ["y"]),
    ]
    weights = {"scale": np.array([1, 2, 3, 4], np.float32), "matrix": np.eye(4, dtype=np.float32)}
    source = graph_of(nodes, tmp_path / "model.onnx", weights)
    onnx.save_model(onnx.load(source), source, save_as_external_data=True, location="weights", size_threshold=0)
    (tmp_path / "out").mkdir()
    lower_graph(source, tmp_path / "out/half.onnx", "fp16")
    (tmp_path / "weights").unlink()
    feeds = {"x": np.array([[1, 2, 3, 4]], np.float32)}
    seen = SimulatedHalfRunner(tmp_path / "out/half.onnx").run(feeds)["y"]
    assert np.abs(seen - [[-1.3416, -0.8944, 1.3416, 5.3666]]).max() < 0.01
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["half.onnx"]


def test_masks_stay_finite(tmp_path: Path) -> None:
    """The lowest float32 is minus infinity in fp16, and 0 times that is no number."""
    nodes = [helper.make_node("Mul", ["x", "lowest"], ["y"])]
    source = graph_of(nodes, tmp_path / "model.onnx", {"lowest": np.full(4, np.finfo(np.float32).min)})
    lower_graph(source, tmp_path / "half.onnx", "fp16")
    seen = SimulatedHalfRunner(tmp_path / "half.onnx").run({"x": np.array([[0, 1, 0, 0.5]], np.float32)})["y"]
    assert seen.tolist() == [[0, -65504, 0, -32752]]


def test_a_quantized_graph_is_not_lowered(bert: tuple[Path, EncoderReport], tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="is quantized"):
        lower_graph(bert[0] / FILES["int8"], tmp_path / "half.onnx", "fp16")


def test_speech_in_16_and_8_bits(encoders: Folders, tmp_path: Path) -> None:
    """The norm over time is sums of thousands of squares, which stay in fp32; attention is fused beside its mask."""
    report = export_encoder(
        str(encoders("hubert-base")), tmp_path / "out", precisions=("fp16", "bf16", "int8"), opset=23
    )
    assert {graph.opset for graph in report.graphs} == {23}
    assert [graph.precision for graph in report.graphs] == ["fp16", "bf16", "int8"]
    operators = {node.op_type for node in onnx.load(tmp_path / "out" / FILES["int8"]).graph.node}
    assert {"MultiHeadAttention", "MatMulInteger"} <= operators
    assert {path.name for path in (tmp_path / "out").glob("*.onnx")} == {
        FILES[graph.precision] for graph in report.graphs
    }


# The gate


def test_a_precision_that_loses_too_much_is_left_out(
    bert: tuple[Path, EncoderReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strict(*arguments: Any) -> EncoderCheck:
        check = check_encoder(*arguments)
        return replace(check, cosine=0.9) if check.precision == "fp16" else check

    monkeypatch.setattr(export_module, "check_encoder", strict)
    report = convert_graph(bert[0], tmp_path / "out", precisions=("fp32", "fp16"))
    assert report.refused == {"fp16": "the lowest cosine is 0.9000, below 0.999"}
    assert not (tmp_path / "out" / FILES["fp16"]).exists()
    with pytest.raises(VerificationError, match="fp16: the lowest cosine"):
        convert_graph(bert[0], tmp_path / "none", precisions=("fp16",))
    assert not (tmp_path / "none").exists()
    accepted = convert_graph(bert[0], tmp_path / "lossy", precisions=("fp16",), accept_quality_loss=True)
    assert accepted.graphs[0].loss_accepted
    assert (tmp_path / "lossy" / FILES["fp16"]).exists()


def test_a_leak_of_padding_is_seen(encoders: Folders, tmp_path: Path) -> None:
    """The base models' norm as transformers has it, over time with padding, does not pass."""
    part = encoder_part(find_source(str(encoders("hubert-base"))), Axes())

    class AllWithin(type(part.module)):  # type: ignore[misc]
        def forward(self, features: Any, attention_mask: Any) -> Any:
            return super().forward(features, attention_mask * 0 + 1)

    part.module.__class__ = AllWithin
    export_graph(part, tmp_path / "model.onnx", "portable")
    check = check_encoder(part, tmp_path / "model.onnx", "fp32")
    assert check.cosine > 0.9999
    assert "padded batches differ" in check.problem


def test_a_leak_of_padding_is_measured_by_the_values_it_leaks_into() -> None:
    logits = EncoderCheck("fp32", 1.5e-8, 1.0, 8, largest_value=0.16, padding_difference=2.5e-4)
    assert "padded batches differ" in logits.problem
    assert not replace(logits, padding_difference=1e-7).problem


def test_padding_counts_for_texts_too(bert: tuple[Path, EncoderReport]) -> None:
    out, report = bert
    engine = OnnxRuntimeEngine(out / FILES["fp32"], EngineConfig())
    feeds = report.part.trial_inputs({"batch": 4, "tokens": 20}, np.random.default_rng(5))
    assert padding_difference(engine, feeds, engine.run(feeds)) < 1e-5
    feeds["attention_mask"][1, :] = 0
    feeds["attention_mask"][1, :2] = 1
    before = engine.run({**feeds, "attention_mask": np.ones_like(feeds["attention_mask"])})
    assert padding_difference(engine, feeds, before) > 1e-3


# Axes, opsets, sizes


def test_fixed_axes_are_fixed_in_the_graph(encoders: Folders, tmp_path: Path) -> None:
    report = export_encoder(str(encoders("bert")), tmp_path / "out", axes=parse_axes("batch=1,time=12"), opset=20)
    session = onnxruntime.InferenceSession(tmp_path / "out" / FILES["fp32"], providers=["CPUExecutionProvider"])
    assert [one.shape for one in session.get_inputs()] == [[1, 12], [1, 12]]
    assert report.graphs[0].opset == 20
    assert report.graphs[0].check.padding_difference is None
    model = onnx.load(tmp_path / "out" / FILES["fp32"])
    assert [one.version for one in model.opset_import if not one.domain] == [20]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch,batch", "there twice"),
        ("batch=0", "no size"),
        ("batch=x", "no size"),
        ("", "no axis"),
        ("batch,depth", "no axis depth"),
        ("batch", "nothing of tokens"),
        ("batch,tokens=41", "longer than this encoder's 40"),
    ],
)
def test_axes_that_cannot_be(text: str, words: str, encoders: Folders) -> None:
    with pytest.raises(InputError, match=words):
        encoder_part(find_source(str(encoders("bert"))), parse_axes(text))


def test_opsets_that_cannot_be() -> None:
    with pytest.raises(InputError, match="opset 17 cannot"):
        check_opset(17, ["fp32"])
    with pytest.raises(InputError, match="bf16 needs opset 22"):
        check_opset(18, ["fp32", "bf16"])
    check_opset(18, ["fp32", "fp16", "int8"])


def test_weights_beside_the_graph(encoders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files above 2 GB, with a lower limit."""
    monkeypatch.setattr(onnx_graph, "EXTERNAL_BYTES", 10_000)
    report = export_encoder(
        str(encoders("eva-clip")), tmp_path / "out", precisions=("fp32", "fp16", "int8"), accept_quality_loss=True
    )
    for graph in report.graphs:
        name = FILES[graph.precision]
        assert set(graph.files) == {name, f"{name}.data"}
        assert (tmp_path / "out" / name).stat().st_size < (tmp_path / "out" / f"{name}.data").stat().st_size
    assert report.graphs[0].check.largest_difference < 2e-5
    assert {path.name for path in (tmp_path / "out").glob("*.data")} == {
        f"{FILES[g.precision]}.data" for g in report.graphs
    }


def test_no_space(encoders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(export_module.shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(BundleError, match="free"):
        export_encoder(str(encoders("dinov2")), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_int8_of_text_needs_words(encoders: Folders, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((encoders("bert") / name).read_bytes())
    conversations = [one.conversation for one in check_conversations()]
    with pytest.raises(WeightsError, match="calibrated on words"):
        export_encoder(str(folder), tmp_path / "out", precisions=("int8",), conversations=conversations)
    assert not (tmp_path / "out").exists()
