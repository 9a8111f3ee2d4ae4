"""A bundle for OpenVINO: int8 weights beside the rest, judged on that engine, used by it and by nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from mechm.cli import cli
from mechm_export.bundle.calibration import recorded_inputs
from mechm_export.bundle.report import BundleReport
from mechm_export.bundle.verify import verify_bundle
from mechm_export.bundle.write import export_bundle
from mechm_export.check_data import check_conversations, check_recordings
from mechm_export.deployment.split import Deployment, split_bundle
from mechm_runtime.bundle.manifest import LLAMA
from mechm_runtime.bundle.precision import PORTABLE_INT8
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.errors import MissingExtraError
from mechm_runtime.pipeline import Pipeline

pytestmark = pytest.mark.openvino

OPENVINO = EngineConfig(n_threads=1, engine="openvino")
LOWERED = {"text", "audio", "scene", LLAMA}


@pytest.fixture(scope="module")
def made(trained: Path, adapter: Path, llama_base: Path, tmp_path_factory: pytest.TempPathFactory) -> BundleReport:
    out = tmp_path_factory.mktemp("openvino") / "bundle"
    return export_bundle("tiny", out, trained=trained, adapter=adapter, llm_base=llama_base, targets=("openvino",))


def test_the_large_parts_have_int8_weights_and_each_was_checked_on_its_engine(made: BundleReport) -> None:
    assert not made.refused
    for name, part in made.bundle.parts.items():
        assert list(part.files) == (["fp32", PORTABLE_INT8] if name in LOWERED else ["fp32"])
        assert part.default == "fp32"
    sizes = {name: entry["size_bytes"] for name, entry in made.bundle.manifest["files"].items()}
    assert sizes["onnx/llama.w8.onnx"] < 0.5 * sizes["onnx/llama.fp32.onnx"]
    assert {check.part for check in made.values if check.precision == PORTABLE_INT8} == LOWERED
    assert [(task.precision, task.problem) for task in made.tasks] == [("fp32", "")] * 2 + [(PORTABLE_INT8, "")] * 2
    assert [task.split.endswith(", recordings") for task in made.tasks] == [False, True] * 2


@pytest.mark.parametrize("name", ["audio", "scene"])
def test_what_is_heard_and_seen_has_scales_from_a_recording(name: str, made: BundleReport) -> None:
    """Static int8: OpenVINO takes the scales in the graph, which speak of voices and pictures, not of noise."""
    part = made.bundle.parts[name]
    graph = onnx.load(made.bundle.path(part.files[PORTABLE_INT8])).graph
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    first = next(node for node in graph.node if node.op_type == "QuantizeLinear")
    feeds = recorded_inputs(made.bundle, check_recordings(), [name])[name]
    peak = max(float(np.abs(feed[part.inputs[0].name]).max()) for feed in feeds)
    assert float(constants[first.input[1]]) * 127 == pytest.approx(peak, rel=1e-4)


def test_words_alone_calibrate_nothing_that_is_heard_or_seen(made: BundleReport) -> None:
    (talk,) = check_recordings()
    found = recorded_inputs(made.bundle, [replace(talk, media=None)], ["audio", "scene"])
    assert found == {"audio": [], "scene": []}


def test_openvino_runs_them_and_onnxruntime_does_not(made: BundleReport) -> None:
    conversation = check_conversations()[0].conversation
    exact = Pipeline(made.bundle).analyze(conversation)
    found = Pipeline(made.bundle, engine=OPENVINO).analyze(conversation)
    same = Pipeline(made.bundle, engine=OPENVINO, precisions=dict.fromkeys(made.bundle.parts, "fp32"))
    for one, other, again in zip(
        found.utterances, exact.utterances, same.analyze(conversation).utterances, strict=True
    ):
        assert again.probabilities == pytest.approx(other.probabilities, abs=1e-4)
        assert one.probabilities == pytest.approx(other.probabilities, abs=0.05)
        assert one.probabilities != pytest.approx(other.probabilities, abs=1e-5)


def test_what_is_split_for_openvino_answers_the_same_there(made: BundleReport, tmp_path: Path) -> None:
    conversation = check_conversations()[0].conversation
    for precision in (None, PORTABLE_INT8, "fp32"):
        bundle = split_bundle(made.bundle.folder, tmp_path / str(precision), Deployment("openvino", precision))
        asked = dict.fromkeys(made.bundle.parts, "fp32") if precision == "fp32" else {}
        expected = Pipeline(made.bundle, engine=OPENVINO, precisions=asked).analyze(conversation)
        assert Pipeline(bundle, engine=OPENVINO).analyze(conversation).utterances == expected.utterances
        kept = {name: list(part.files) for name, part in bundle.parts.items()}
        large = ["fp32"] if precision == "fp32" else [PORTABLE_INT8]
        assert kept == {name: large if name in LOWERED else ["fp32"] for name in made.bundle.parts}


def test_verify_repeats_the_checks_on_that_engine(
    made: BundleReport, trained: Path, adapter: Path, llama_base: Path
) -> None:
    report = verify_bundle(made.bundle.folder, trained=trained, adapter=adapter, llm_base=llama_base)
    assert [task.precision for task in report.tasks] == ["default", PORTABLE_INT8, PORTABLE_INT8]
    assert report.problems == []


def test_the_command_uses_the_engine(made: BundleReport, repository: Path, tmp_path: Path) -> None:
    sample = str(repository / "sample" / "conversation.srt")
    arguments = ["analyze", sample, "--bundle", str(made.bundle.folder), "--json", "-"]
    answers = [CliRunner().invoke(cli, [*arguments, *more]) for more in ([], ["--engine", "openvino"])]
    assert [done.exit_code for done in answers] == [0, 0]
    plain, openvino = (json.loads(done.stdout)["utterances"][0]["probabilities"] for done in answers)
    assert plain != openvino
    assert openvino == pytest.approx(plain, abs=0.05)
    refused = CliRunner().invoke(cli, [*arguments, "--engine", "openvino", "--precision", "int8"])
    assert refused.exception is not None


def test_without_the_engine_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["export", "bundle", "--preset", "tiny", "--out", str(tmp_path / "out"), "--engine", "openvino"]
    for package, extra in (("openvino", "openvino"), ("av", "media")):
        monkeypatch.setattr(
            "mechm_export.bundle.write.find_spec", lambda name, missing=package: name != missing or None
        )
        refused = CliRunner().invoke(cli, arguments)
        assert isinstance(refused.exception, MissingExtraError)
        assert f"mechm[{extra}]" in refused.exception.hint
    assert not (tmp_path / "out").exists()
