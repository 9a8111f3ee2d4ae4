"""The engine `onnxruntime-gpu`: what it runs, what it refuses, and that nothing falls back to the CPU unseen."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from mechm.cli import cli
from mechm_runtime import Conversation, Pipeline, Utterance
from mechm_runtime.bundle.manifest import PartFiles
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.load import load_engine
from mechm_runtime.engines.onnxruntime_cuda import RECORD_ASSIGNMENT, CudaEngine, check_assignment
from mechm_runtime.engines.part_loader import PartLoader
from mechm_runtime.engines.spec import CPU, CUDA, ENGINES, EngineName
from mechm_runtime.environment.packages import gpu_install_command
from mechm_runtime.errors import BundleError, InputError, MissingExtraError, ProviderError

ON_GPU = EngineConfig(n_threads=1, engine="onnxruntime-gpu")
HAS_CUDA = CUDA in onnxruntime.get_available_providers()
without_cuda = pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has CUDA")
INSTALL = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
TALK = Conversation("talk", (Utterance(1, "A", "I got the job!"), Utterance(2, "B", "No way! Congratulations.")))


@pytest.fixture(scope="module")
def graph(tiny_bundle: Path) -> Path:
    return tiny_bundle / "onnx/expression.fp32.onnx"


@without_cuda
def test_without_cuda_it_is_refused_with_what_to_install(graph: Path, tiny_bundle: Path) -> None:
    for refuse in (lambda: load_engine(graph, ON_GPU), lambda: Pipeline.from_bundle(tiny_bundle, engine=ON_GPU)):
        with pytest.raises(ProviderError, match=f"has no {CUDA}") as refused:
            refuse()
        assert refused.value.hint == f"pip uninstall -y onnxruntime && {INSTALL}"


@without_cuda
def test_the_command_is_refused_the_same_way(tiny_bundle: Path, repository: Path) -> None:
    sample = str(repository / "sample" / "conversation.srt")
    done = CliRunner().invoke(cli, ["analyze", sample, "--bundle", str(tiny_bundle), "--engine", "onnxruntime-gpu"])
    assert isinstance(done.exception, ProviderError)
    assert done.exception.hint.endswith(INSTALL)


@without_cuda
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_cuda_that_is_listed_and_not_run_is_refused(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the GPU build does where there is no CUDA: it lists the provider, and runs on the CPU."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    with pytest.raises(ProviderError, match=f"^{CUDA} did not load") as refused:
        CudaEngine(graph, ON_GPU)
    assert "pip install" in refused.value.hint


def test_without_onnxruntime_the_extra_is_named(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError) as caught:
        CudaEngine(graph, ON_GPU)
    assert "mechm[gpu]" in caught.value.hint


@pytest.mark.parametrize(
    ("installed", "command"),
    [
        ((), INSTALL),
        (("onnxruntime-gpu",), INSTALL),
        (("onnxruntime",), f"pip uninstall -y onnxruntime && {INSTALL}"),
        (("onnxruntime", "onnxruntime-gpu"), f"pip uninstall -y onnxruntime onnxruntime-gpu && {INSTALL}"),
    ],
)
def test_two_distributions_never_own_the_same_files(installed: tuple[str, ...], command: str) -> None:
    assert gpu_install_command(installed) == command


def recorded_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(RECORD_ASSIGNMENT, "1")
    return onnxruntime.InferenceSession(str(path), options, providers=[CPU])


def test_products_that_were_left_to_the_cpu_are_an_error(graph: Path) -> None:
    n_convolutions = sum(node.op_type == "Conv" for node in onnx.load(graph).graph.node)
    with pytest.raises(ProviderError, match=rf"left a part of face to the CPU: .*\b{n_convolutions} (Fused)?Conv\b"):
        check_assignment(recorded_session(graph), "face")


def test_shapes_may_be_computed_on_the_cpu(tmp_path: Path) -> None:
    nodes = [helper.make_node("Shape", ["x"], ["shape"]), helper.make_node("ReduceProd", ["shape"], ["y"], keepdims=0)]
    described = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", "columns"]),
        helper.make_tensor_value_info("y", TensorProto.INT64, []),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "size", described[:1], described[1:]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save_model(model, tmp_path / "size.onnx")
    session = recorded_session(tmp_path / "size.onnx")
    assert session.get_provider_graph_assignment_info(), "the CPU has them"
    check_assignment(session, "size.onnx")


def test_a_session_that_was_not_recorded_is_never_taken_for_a_good_one(graph: Path) -> None:
    session = onnxruntime.InferenceSession(str(graph), providers=[CPU])
    with pytest.raises(Exception, match="record_ep_graph_assignment_info"):
        check_assignment(session, "face")


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        (("fp32", "int8"), {"onnxruntime": "int8", "onnxruntime-gpu": "fp32", "openvino": "fp32"}),
        (("fp32", "int8", "fp16"), {"onnxruntime": "int8", "onnxruntime-gpu": "fp16", "openvino": "fp32"}),
        (("fp32", "int8", "bf16"), {"onnxruntime": "int8", "onnxruntime-gpu": "bf16", "openvino": "fp32"}),
        (("fp32", "int8", "w8", "fp16"), {"onnxruntime": "int8", "onnxruntime-gpu": "fp16", "openvino": "w8"}),
        (("fp32", "w8"), {"onnxruntime": "fp32", "onnxruntime-gpu": "fp32", "openvino": "w8"}),
    ],
)
def test_an_engine_runs_the_precision_that_was_made_for_it(
    present: tuple[str, ...], expected: dict[EngineName, str]
) -> None:
    default = "int8" if "int8" in present else "fp32"
    part = PartFiles("text", (), (), {precision: f"text.{precision}.onnx" for precision in present}, default)
    assert {engine: ENGINES[engine].default_precision(part) for engine in expected} == expected


@pytest.mark.parametrize("precision", ["int8", "w8"])
def test_eight_bits_are_never_run_on_a_gpu(precision: str, tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match=f"the {precision} files are for CPUs") as refused:
        PartLoader(open_bundle(tiny_bundle, check_hashes=False), {"text": precision}, ON_GPU)
    assert refused.value.hint


def test_a_bundle_without_what_the_engine_runs_is_told_so(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle, check_hashes=False)
    part = bundle.parts["text"]
    alone = PartFiles(part.name, part.inputs, part.outputs, {"int8": part.files["int8"]}, "int8")
    with pytest.raises(BundleError, match="no fp32 file of its text part"):
        PartLoader(replace(bundle, parts={"text": alone}), {}, ON_GPU)(alone)


def test_the_provider_goes_with_the_engine() -> None:
    assert ON_GPU.execution_provider == CUDA
    assert EngineConfig().execution_provider == CPU
    with pytest.raises(ValueError, match="the engine is onnxruntime-gpu"):
        EngineConfig(engine="onnxruntime-gpu", provider="TensorrtExecutionProvider")


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="this onnxruntime has no CUDA")
def test_a_gpu_answers_as_the_cpu_does(tiny_bundle: Path) -> None:
    exact = Pipeline.from_bundle(tiny_bundle, precision="fp32").analyze(TALK)
    found = Pipeline.from_bundle(tiny_bundle, engine=ON_GPU).analyze(TALK)
    for one, other in zip(found.utterances, exact.utterances, strict=True):
        np.testing.assert_allclose(list(one.probabilities.values()), list(other.probabilities.values()), atol=1e-3)
