"""A bundle for CUDA: one 16-bit graph a part, judged as a GPU rounds it, and run by that engine alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from mechm.cli import cli
from mechm.model.build import build_network, save_trained
from mechm.model.config import TINY
from mechm_export.bundle.half_parts import MISSING_CUDA_KERNELS, write_half
from mechm_export.bundle.report import BundleReport
from mechm_export.bundle.verify import verify_bundle
from mechm_export.bundle.write import export_bundle
from mechm_export.check_data import check_conversations
from mechm_export.deployment.split import Deployment, split_bundle
from mechm_export.parts import build_parts
from mechm_export.precision.half import ELEMENT_TYPES, HalfPrecision
from mechm_export.precision.tensor_types import element_types
from mechm_runtime.bundle.config import DecisionConfig
from mechm_runtime.bundle.manifest import LLAMA, PROJECTOR
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.engines.spec import ENGINES
from mechm_runtime.errors import InputError, MissingExtraError
from mechm_runtime.pipeline import Pipeline

ONE_THREAD = EngineConfig(n_threads=1)
PARTS = {"text", "audio", "scene", "expression", "detector", "fusion", LLAMA, PROJECTOR}
IN_FP32 = {"LayerNormalization", "Softmax", "LogSoftmax", "ReduceMean", "ReduceSum", "Pow", "Sqrt", "Exp"}


@pytest.fixture(scope="module")
def made(trained: Path, adapter: Path, llama_base: Path, tmp_path_factory: pytest.TempPathFactory) -> BundleReport:
    out = tmp_path_factory.mktemp("gpu") / "bundle"
    return export_bundle(
        "tiny", out, trained=trained, adapter=adapter, llm_base=llama_base, targets=("onnxruntime-gpu",)
    )


@pytest.fixture(scope="module")
def overflowing(small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> BundleReport:
    """A fusion with a layer whose states are beyond fp16's range, and answers that are not."""
    network = build_network(TINY, None)
    with torch.no_grad():
        ups = [name for name, _ in network.fusion.named_modules() if name.endswith("up_proj")]
        for name in ups:
            network.fusion.get_submodule(name).weight.mul_(2e5)  # type: ignore[operator, union-attr]
            network.fusion.get_submodule(name.replace("up_", "down_")).weight.mul_(5e-6)  # type: ignore[operator, union-attr]
    assert ups
    folder = tmp_path_factory.mktemp("overflowing")
    save_trained(network, DecisionConfig(), {"data": "none"}, folder / "trained")
    targets = ("onnxruntime", "onnxruntime-gpu")
    return export_bundle("tiny", folder / "bundle", trained=folder / "trained", targets=targets)  # type: ignore[arg-type]


def test_every_part_has_one_16_bit_graph_that_was_checked(made: BundleReport) -> None:
    assert made.refused == {}
    assert {name: list(part.files) for name, part in made.bundle.parts.items()} == {
        name: ["fp32", "fp16"] for name in PARTS
    }
    assert {part.default for part in made.bundle.parts.values()} == {"fp32"}
    sizes = {name: entry["size_bytes"] for name, entry in made.bundle.manifest["files"].items()}
    assert sizes["onnx/llama.fp16.onnx"] < 0.6 * sizes["onnx/llama.fp32.onnx"]
    recorded = made.bundle.manifest["checks"]
    assert {check["part"] for check in recorded["values"] if check["precision"] == "fp16"} == PARTS
    assert [task["precision"] for task in recorded["task"]] == ["fp32"] * 2 + ["fp16"] * 2
    assert [task["split"].endswith(", recordings") for task in recorded["task"]] == [False, True] * 2
    assert made.problems == []


@pytest.mark.parametrize("name", sorted(PARTS))
def test_callers_see_fp32_and_sums_stay_in_it(name: str, made: BundleReport) -> None:
    part = made.bundle.parts[name]
    exact, half = (onnx.load(made.bundle.path(part.files[precision])) for precision in ("fp32", "fp16"))
    for one, other in zip(
        (*exact.graph.input, *exact.graph.output), (*half.graph.input, *half.graph.output), strict=True
    ):
        assert (one.name, one.type.tensor_type.elem_type) == (other.name, other.type.tensor_type.elem_type)
    types = element_types(half)
    for node in half.graph.node:
        assert node.domain == "", "plain ONNX, which CUDA has kernels for"
        kinds = {types[value] for value in (*node.input, *node.output) if value in types}
        if node.op_type in IN_FP32:
            assert TensorProto.FLOAT16 not in kinds, node.name
        if node.op_type in MISSING_CUDA_KERNELS["fp16"]:
            assert TensorProto.FLOAT16 not in kinds, node.name
    products = [node for node in half.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    assert any(types[node.output[0]] == TensorProto.FLOAT16 for node in products)


@pytest.mark.parametrize("name", sorted(PARTS))
def test_onnxruntime_computes_fp16_close_to_fp32(
    name: str, made: BundleReport, trained: Path, adapter: Path, llama_base: Path
) -> None:
    """On the CPU provider, which widens most of it: that the graph is whole, not how a GPU rounds."""
    (part,) = (one for one in build_parts("tiny", trained, adapter, llama_base) if one.name == name)
    files = made.bundle.parts[name].files
    exact, half = (OnnxRuntimeEngine(made.bundle.path(files[precision]), ONE_THREAD) for precision in ("fp32", "fp16"))
    random = np.random.default_rng(5)
    for sizes in part.trial_sizes:
        feeds = part.trial_inputs(sizes, random)
        answers, expected = half.run(feeds), exact.run(feeds)
        for output, values in expected.items():
            assert answers[output].dtype == values.dtype
            scale = max(1.0, float(np.abs(values).max(initial=0.0)))
            assert np.abs(answers[output].astype(np.float32) - values).max(initial=0.0) < 0.01 * scale
    assert files["fp16"] == f"onnx/{name}.fp16.onnx"


def test_fp16_answers_as_fp32_does_and_not_to_the_bit(made: BundleReport) -> None:
    conversation = check_conversations()[0].conversation
    exact, half = (
        Pipeline(made.bundle, engine=ONE_THREAD, precisions=dict.fromkeys(PARTS, precision)).analyze(conversation)
        for precision in ("fp32", "fp16")
    )
    for one, other in zip(half.utterances, exact.utterances, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=0.01)
    assert [u.probabilities for u in half.utterances] != [u.probabilities for u in exact.utterances]


@pytest.mark.usefixtures("exact_int8")
def test_what_overflows_in_fp16_is_in_bf16(overflowing: BundleReport) -> None:
    assert set(overflowing.refused) == {("fusion", "fp16")}
    assert "not finite" in overflowing.refused["fusion", "fp16"]
    files = {name: list(part.files) for name, part in overflowing.bundle.parts.items()}
    assert files["fusion"] == ["fp32", "int8", "bf16"]
    assert all(present == ["fp32", "int8", "fp16"] for name, present in files.items() if name != "fusion")
    assert not (overflowing.bundle.folder / "onnx/fusion.fp16.onnx").exists()
    assert {(c.part, c.precision) for c in overflowing.values if c.part == "fusion"} == {
        ("fusion", "fp32"),
        ("fusion", "int8"),
        ("fusion", "bf16"),
    }
    parts = overflowing.bundle.parts
    assert ENGINES["onnxruntime-gpu"].default_precision(parts["fusion"]) == "bf16"
    assert ENGINES["onnxruntime-gpu"].default_precision(parts["text"]) == "fp16"
    assert ENGINES["onnxruntime"].default_precision(parts["text"]) == "int8"
    assert [task.precision for task in overflowing.tasks] == ["fp32", "fp32", "int8", "int8", "fp16", "fp16"]


def test_what_is_split_for_a_gpu_has_16_bits_alone_and_bf16_is_not_for_cpus(
    overflowing: BundleReport, tmp_path: Path
) -> None:
    bundle = split_bundle(overflowing.bundle.folder, tmp_path / "gpu", Deployment("onnxruntime-gpu"))
    kept = {name: list(part.files) for name, part in bundle.parts.items()}
    assert kept == {name: ["bf16"] if name == "fusion" else ["fp16"] for name in overflowing.bundle.parts}
    assert {task["precision"] for task in bundle.manifest["checks"]["task"]} == {"fp16"}
    with pytest.raises(InputError, match="computes no bf16 on a CPU") as refused:
        Pipeline(bundle)
    assert "--engine onnxruntime-gpu" in refused.value.hint
    with pytest.raises(InputError, match="onnxruntime-gpu does not run int8"):
        split_bundle(overflowing.bundle.folder, tmp_path / "more", Deployment("onnxruntime-gpu", "int8"))


def test_verify_repeats_the_checks_in_16_bits(
    made: BundleReport, trained: Path, adapter: Path, llama_base: Path
) -> None:
    before = sorted(path.name for path in (made.bundle.folder / "onnx").iterdir())
    report = verify_bundle(made.bundle.folder, trained=trained, adapter=adapter, llm_base=llama_base)
    assert [task.precision for task in report.tasks] == ["default", "fp16", "fp16"]
    assert report.problems == []
    assert {(c.part, c.precision) for c in report.values} == {(name, p) for name in PARTS for p in ("fp32", "fp16")}
    assert sorted(path.name for path in (made.bundle.folder / "onnx").iterdir()) == before


def test_a_bundle_says_what_it_has_for_a_gpu(made: BundleReport) -> None:
    done = CliRunner().invoke(cli, ["bundle", "inspect", str(made.bundle.folder), "--json"])
    found = json.loads(done.stdout)
    precisions = {part["name"]: [one["name"] for one in part["precisions"]] for part in found["parts"]}
    assert precisions["text"] == ["fp32", "fp16"]
    assert "fp16" in {score["precision"] for score in found["scores"]}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_cuda_lacks_stays_in_fp32(precision: HalfPrecision, tmp_path: Path) -> None:
    """bf16 has no kernel of Pad or LeakyRelu there: onnxruntime would go to the CPU and back between two products."""
    names = ["linear", "pad", "leak", "again"]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="linear"),
        helper.make_node("Pad", ["a", "pads"], ["b"], name="pad"),
        helper.make_node("LeakyRelu", ["b"], ["c"], name="leak", alpha=0.1),
        helper.make_node("MatMul", ["c", "w"], ["y"], name="again"),
    ]
    weights = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    described = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 8]) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "padded",
            described[:1],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["more", 8])],
            [
                numpy_helper.from_array(weights, "w"),
                numpy_helper.from_array(np.array([1, 0, 1, 0], np.int64), "pads"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save_model(model, tmp_path / "exact.onnx")
    write_half(tmp_path / "exact.onnx", tmp_path / "half.onnx", precision)
    half = onnx.load(tmp_path / "half.onnx")
    types = element_types(half)
    lowered = {n.name for n in half.graph.node if n.name in names and types[n.output[0]] == ELEMENT_TYPES[precision]}
    assert lowered == ({"linear", "again"} if precision == "bf16" else set(names))


def test_recordings_can_be_read_before_anything_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechm_export.bundle.write.find_spec", lambda name: name != "av" or None)
    arguments = ["export", "bundle", "--preset", "tiny", "--out", str(tmp_path / "out"), "--engine", "onnxruntime-gpu"]
    refused = CliRunner().invoke(cli, arguments)
    assert isinstance(refused.exception, MissingExtraError)
    assert "mechm[media]" in refused.exception.hint
    assert not (tmp_path / "out").exists()
