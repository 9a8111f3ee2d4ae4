"""A Triton model repository: Triton's own schema reads it, the graphs have what it says, and its model answers alike.

Triton does not run here. Its Python backend is stood in for by `backend`, which has the documented interface and runs
the repository's graphs with onnxruntime, as each `config.pbtxt` describes them.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from mechm_export.bundle.report import BundleReport
from mechm_export.check_data import check_conversations
from mechm_export.deployment.triton import MAX_BATCH, part_config, write_repository
from mechm_runtime.bundle.manifest import LLAMA, PartFiles, Tensor
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.errors import BundleError, InputError
from mechm_runtime.fusion.run import WINDOWS_PER_RUN
from mechm_runtime.modalities.text import TEXT_WINDOWS_PER_RUN
from mechm_runtime.pipeline import Pipeline
from mechm_runtime.types import Conversation

PARTS = ("text", "audio", "scene", "detector", "expression", "fusion")
ONE_THREAD = EngineConfig(n_threads=1)
NUMPY = {"TYPE_FP16": np.float16, "TYPE_FP32": np.float32, "TYPE_INT64": np.int64, "TYPE_BOOL": np.bool_}


@pytest.fixture(scope="module")
def repository_of(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Precision -> a repository."""
    folder = tmp_path_factory.mktemp("triton")
    for precision in ("fp32", "int8"):
        write_repository(tiny_bundle, folder / precision, precision=precision)
    return {precision: folder / precision for precision in ("fp32", "int8")}


def configs(models: Path) -> dict[str, Any]:
    """Every model's configuration, as Triton's schema reads it."""
    return {
        path.parent.name: text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
        for path in models.glob("*/config.pbtxt")
    }


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_configuration_describes_its_graph(precision: str, repository_of: dict[str, Path]) -> None:
    """Names, dtypes and axes are the file's own: Triton refuses a model where they are not."""
    models = repository_of[precision]
    found = configs(models)
    assert set(found) == {"mechm", *(f"mechm_{part}" for part in PARTS)}
    for name, config in found.items():
        assert config.name == name
        if name == "mechm":
            continue
        assert config.backend == "onnxruntime"
        graph = onnx.load(models / name / "1" / "model.onnx").graph
        for values, described in ((graph.input, config.input), (graph.output, config.output)):
            assert [value.name for value in values] == [tensor.name for tensor in described]
            for value, tensor in zip(values, described, strict=True):
                dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
                assert np.dtype(NUMPY[DataType.Name(tensor.data_type)]) == dtype
                axes = [dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim]
                dims = list(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)
                assert axes == ([-1, *dims] if config.max_batch_size else dims)
                assert tensor.dims, "Triton wants an axis"


def test_a_part_without_a_batch_axis_is_not_batched() -> None:
    """As the Llama, which packs many questions into a batch of one."""
    inputs = (Tensor("input_ids", "int64", (1, "tokens")), Tensor("emotion_at", "int64", ("questions",)))
    outputs = (Tensor("emotion_log_probabilities", "float32", ("questions", 7)),)
    part = PartFiles(LLAMA, inputs, outputs, {"fp32": "onnx/llama.fp32.onnx"}, "fp32")
    config: Any = text_format.Parse(part_config("mechm_llama", part, "tiny-0"), ModelConfig())
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert [list(tensor.dims) for tensor in (*config.input, *config.output)] == [[1, -1], [-1], [-1, 7]]
    with pytest.raises(BundleError, match="no tensor"):
        part_config("mechm_llama", replace(part, inputs=(Tensor('x" }', "int64", (1,)),)), "tiny-0")


def test_batches_are_large_enough_for_the_pipeline() -> None:
    assert max(WINDOWS_PER_RUN, TEXT_WINDOWS_PER_RUN) <= MAX_BATCH


def test_who_else_is_in_a_batch_changes_no_answer(repository_of: dict[str, Path]) -> None:
    """Where the server may batch across requests, a row alone gives what it gives beside others."""
    random = np.random.default_rng(0)
    batched = {}
    for precision, models in repository_of.items():
        for name, config in configs(models).items():
            if not config.HasField("dynamic_batching"):
                continue
            batched.setdefault(precision, set()).add(name)
            engine = OnnxRuntimeEngine(models / name / "1" / "model.onnx", ONE_THREAD)
            feeds = {
                tensor.name: some(random, 3, [d if d > 0 else 32 for d in tensor.dims], tensor)
                for tensor in config.input
            }
            together = engine.run(feeds)
            for row in range(3):
                alone = engine.run({key: value[row : row + 1] for key, value in feeds.items()})
                for output, values in alone.items():
                    np.testing.assert_allclose(values[0], together[output][row], rtol=1e-4, atol=1e-5)
    assert batched == {"fp32": {f"mechm_{p}" for p in PARTS}}


def some(random: np.random.Generator, n: int, dims: Sequence[int], tensor: Any) -> Any:
    """Inputs of three requests; lengths and ids small enough for every part."""
    dtype = NUMPY[DataType.Name(tensor.data_type)]
    shape = (n, *([] if tensor.HasField("reshape") else dims))
    if dtype == np.float32:
        return random.normal(0, [[1.0], [3.0], [9.0]], (n, int(np.prod(shape[1:])))).reshape(shape).astype(dtype)
    return np.ones(shape, bool) if dtype == np.bool_ else random.integers(1, 4, shape)


def test_int8_does_depend_on_the_batch(repository_of: dict[str, Path]) -> None:
    """Why it is not batched: another request's loud rows coarsen this one's."""
    engine = OnnxRuntimeEngine(repository_of["int8"] / "mechm_scene" / "1" / "model.onnx", ONE_THREAD)
    random = np.random.default_rng(0)
    pixels = random.normal(0, 1, (2, 3, 224, 224)).astype(np.float32) * np.float32([1, 50]).reshape(2, 1, 1, 1)
    together = engine.run({"pixel_values": pixels})["scene_token"][0]
    alone = engine.run({"pixel_values": pixels[:1]})["scene_token"][0]
    assert np.abs(together - alone).max() > 1e-4


# The model that analyses


class TritonModelException(Exception):  # noqa: N818 - the backend's own name
    """As the backend has it."""


@dataclass
class NamedArray:
    """A named array, as the backend has it."""

    tensor_name: str
    array: Any

    def name(self) -> str:
        return self.tensor_name

    def as_numpy(self) -> Any:
        return self.array


@dataclass
class TritonError:
    """Why a request failed."""

    text: str

    def message(self) -> str:
        return self.text


@dataclass
class InferenceResponse:
    """The response of a model."""

    output_tensors: list[NamedArray] = field(default_factory=list)
    error: Any = None


@dataclass
class Response:
    """The response of a model to a request from another one."""

    tensors: list[NamedArray]
    failure: str = ""

    def has_error(self) -> bool:
        return bool(self.failure)

    def error(self) -> TritonError:
        return TritonError(self.failure)


@dataclass
class Request:
    """The request of a client."""

    tensors: list[NamedArray]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for Triton's module. Models are looked for in `models`, with the checks of a server."""
    module: Any = ModuleType("triton_python_backend_utils")

    @dataclass
    class InferenceRequest:
        model_name: str
        requested_output_names: list[str]
        inputs: list[NamedArray]
        preferred_memory: Any

        def exec(self) -> Response:
            if self.model_name in module.failing:
                return Response([], f"{self.model_name} is not ready")
            config = configs(module.models)[self.model_name]
            described = {tensor.name: tensor for tensor in config.input}
            assert {tensor.name() for tensor in self.inputs} == set(described)
            feeds = {}
            for tensor in self.inputs:
                array, wanted = tensor.as_numpy(), described[tensor.name()]
                assert array.dtype == NUMPY[DataType.Name(wanted.data_type)]
                shape = list(array.shape)
                if config.max_batch_size:
                    assert shape.pop(0) <= config.max_batch_size
                assert len(shape) == len(wanted.dims)
                assert all(dim in (-1, size) for dim, size in zip(wanted.dims, shape, strict=True))
                reshape = wanted.HasField("reshape")
                feeds[tensor.name()] = array.reshape(len(array), *wanted.reshape.shape) if reshape else array
            found = OnnxRuntimeEngine(module.models / self.model_name / "1" / "model.onnx", ONE_THREAD).run(feeds)
            return Response([NamedArray(name, found[name]) for name in self.requested_output_names])

    def by_name(holder: Any, name: str) -> NamedArray:
        (tensor,) = [tensor for tensor in holder.tensors if tensor.name() == name]
        return tensor

    module.failing = set()
    module.Tensor, module.TritonError, module.InferenceResponse = NamedArray, TritonError, InferenceResponse
    module.InferenceRequest, module.TritonModelException = InferenceRequest, TritonModelException
    module.get_input_tensor_by_name = module.get_output_tensor_by_name = by_name
    module.TRITONSERVER_MEMORY_CPU, module.PreferredMemory = 0, lambda kind, device: (kind, device)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def load(folder: Path, backend: Any) -> Any:
    """The repository's model, loaded from the file that lies there."""
    backend.models = folder.parent
    spec = importlib.util.spec_from_file_location("model_of_triton", folder / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    model.initialize({"model_name": folder.name})
    return model


def document(conversation: Conversation) -> bytes:
    turns = [{"utterance_ID": u.id, "speaker": u.speaker, "text": u.text} for u in conversation.utterances]
    return json.dumps({"conversation_ID": conversation.id, "conversation": turns}).encode()


def ask(model: Any, conversations: Sequence[Conversation | bytes]) -> list[Any]:
    """Answers as parsed JSON, or why there is none."""
    requests = [
        Request([NamedArray("conversation", np.array([c if isinstance(c, bytes) else document(c)], np.object_))])
        for c in conversations
    ]
    responses = model.execute(requests)
    return [r.error.message() if r.error else json.loads(r.output_tensors[0].as_numpy()[0]) for r in responses]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_model_answers_as_the_runtime_does(
    precision: Any, repository_of: dict[str, Path], tiny_bundle: Path, backend: Any
) -> None:
    models = repository_of[precision]
    config = configs(models)["mechm"]
    assert config.backend == "python"
    assert config.instance_group[0].kind == ModelInstanceGroup.Kind.KIND_CPU
    model = load(models / "mechm", backend)
    conversations = [one.conversation for one in check_conversations()[:3]]
    runtime = Pipeline.from_bundle(tiny_bundle, precision=precision, modalities=("text",), engine=ONE_THREAD)
    for conversation, answer in zip(conversations, ask(model, conversations), strict=True):
        expected = runtime.analyze(conversation)
        assert [u["probabilities"] for u in answer["utterances"]] == [u.probabilities for u in expected.utterances]
        assert [u["emotion"] for u in answer["utterances"]] == [u.emotion for u in expected.utterances]
        assert answer["bundle_id"] == config.parameters["bundle"].string_value


def test_a_request_that_cannot_be_answered_fails_alone(repository_of: dict[str, Path], backend: Any) -> None:
    model = load(repository_of["fp32"] / "mechm", backend)
    good = check_conversations()[0].conversation
    silent = b'{"conversation_ID": 1, "conversation": [{"utterance_ID": 1, "text": ""}]}'
    found = ask(model, [b"\xff", b"not JSON", silent, good])
    assert [type(answer) for answer in found] == [str, str, str, dict]
    assert "not JSON" in found[1]
    backend.failing.add("mechm_fusion")
    assert ask(model, [good]) == ["a part failed: mechm_fusion is not ready"]


def test_names_and_places_are_judged_first(tiny_bundle: Path, tmp_path: Path) -> None:
    for name in ("", "../x", "a b", 'x"'):
        with pytest.raises(InputError, match="is no name for a model"):
            write_repository(tiny_bundle, tmp_path / "models", name=name)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("mine")
    with pytest.raises(BundleError, match="exists"):
        write_repository(tiny_bundle, tmp_path / "taken")
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    graph = folder / "onnx/text.fp32.onnx"
    graph.write_bytes(bytes(graph.stat().st_size))
    with pytest.raises(BundleError, match="was changed"):
        write_repository(folder, tmp_path / "models")
    assert {path.name for path in tmp_path.iterdir()} == {"taken", "bundle"}


def test_a_bundle_with_a_llama_answers_as_the_runtime_does(report: BundleReport, tmp_path: Path, backend: Any) -> None:
    """Its graph reads keys and values in float16, none of them at the start of a conversation."""
    write_repository(report.bundle.folder, tmp_path / "models", precision="fp32")
    conversation = check_conversations()[0].conversation
    runtime = Pipeline(report.bundle, precision="fp32", modalities=("text",), engine=ONE_THREAD)
    assert runtime.llm == "onnx"
    (answer,) = ask(load(tmp_path / "models" / "mechm", backend), [conversation])
    expected = runtime.analyze(conversation)
    assert [u["probabilities"] for u in answer["utterances"]] == [u.probabilities for u in expected.utterances]


def test_another_name_names_all_models(tiny_bundle: Path, tmp_path: Path, backend: Any) -> None:
    bundle = write_repository(tiny_bundle, tmp_path / "models", name="emotions.v2", n_instances=3)
    found = configs(tmp_path / "models")
    assert set(found) == {"emotions.v2", *(f"emotions.v2_{part}" for part in bundle.parts)}
    assert found["emotions.v2"].instance_group[0].count == 3
    assert bundle.folder == tmp_path / "models" / "emotions.v2" / "1" / "bundle"
    assert open_bundle(bundle.folder) == bundle
    (answer,) = ask(load(tmp_path / "models" / "emotions.v2", backend), [check_conversations()[0].conversation])
    assert answer["utterances"]
