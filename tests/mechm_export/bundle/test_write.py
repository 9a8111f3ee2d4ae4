"""Writing and verifying bundles: what is refused, what is left out, and that an old bundle survives every failure.

The tiny network is given constants of decision under which random weights tell utterances apart, so sharply that the
fusion's int8 form changes labels: the gate has something to refuse.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from mechm.cli import cli
from mechm.model.build import build_network, save_trained
from mechm.model.config import preset_config
from mechm_export.bundle import half_parts
from mechm_export.bundle.report import BundleReport
from mechm_export.bundle.verify import verify_bundle
from mechm_export.bundle.write import Target, export_bundle
from mechm_export.check_data import check_conversations
from mechm_export.diagnose.proposal import Proposal
from mechm_export.gate import run as gate_run
from mechm_export.gate.check_set import CheckSet, shipped_check_set
from mechm_export.gate.comparison import TaskCheck
from mechm_runtime.bundle.config import DecisionConfig
from mechm_runtime.bundle.manifest import ACCEPTED, MANIFEST, manifest_id
from mechm_runtime.bundle.open import file_sha256, open_bundle
from mechm_runtime.bundle.staging import check_target
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.spec import ENGINES
from mechm_runtime.errors import BundleError, InputError, VerificationError, WeightsError
from mechm_runtime.pipeline import Pipeline
from mechm_runtime.system.atomic_write import put_in_place
from mechm_runtime.types import EMOTIONS

CARD = {"data": "none", "licence": "none"}


@pytest.fixture(scope="module")
def sharp(tiny_bundle: Path) -> DecisionConfig:
    """Constants that choose among all emotions and jump at small differences."""
    pipeline = Pipeline.from_bundle(tiny_bundle, precision="fp32", engine=EngineConfig(n_threads=1))
    logs = [
        np.log([u.probabilities[emotion] for emotion in EMOTIONS])
        for one in check_conversations()
        for u in pipeline.analyze(one.conversation).utterances
    ]
    return DecisionConfig(emotion_temperature=0.01, emotion_bias=tuple(np.mean(logs, 0) * -100), pair_threshold=0.3)


@pytest.fixture(scope="module")
def trained(sharp: DecisionConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as training writes it, with random weights."""
    folder = tmp_path_factory.mktemp("trained")
    save_trained(build_network(preset_config("tiny"), None), sharp, CARD, folder)
    return folder


@pytest.fixture(scope="module")
def report(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> BundleReport:
    """An export of these weights, over an older bundle that is damaged and in the way."""
    out = tmp_path_factory.mktemp("export") / "bundle"
    (out / "onnx").mkdir(parents=True)
    (out / "onnx" / "text.fp32.onnx").write_bytes(b"old")
    (out / MANIFEST).write_text(json.dumps({"files": {"onnx/text.fp32.onnx": {}, "gone": {}}}))
    steps: list[str] = []
    report = export_bundle("tiny", out, trained=trained, on_step=steps.append)
    assert steps[0] == "loading weights"
    assert steps[-1].startswith("comparing answers")
    assert len(steps) == len(set(steps)) == 2 + 2 * 6
    return report


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change a manifest and make it consistent again: hashes, sizes and id."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    manifest["files"] = {
        name: {"sha256": file_sha256(folder / name), "size_bytes": (folder / name).stat().st_size}
        for name in manifest["files"]
        if (folder / name).is_file()
    }
    manifest["id"] = manifest_id(manifest["preset"], manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to damage; alone in its parent folder."""
    (tmp_path / "home").mkdir()
    return Path(shutil.copytree(tiny_bundle, tmp_path / "home" / "bundle"))


# What is written


def test_what_changes_labels_is_left_out_and_reported(report: BundleReport) -> None:
    # How much rounding changes depends on the CPU's kernels; nothing but these two parts sees text.
    assert {("fusion", "int8")} <= set(report.refused) <= {("fusion", "int8"), ("text", "int8")}
    assert "labels differ from torch" in report.refused["fusion", "int8"]
    bundle = open_bundle(report.bundle.folder)
    assert list(bundle.parts["fusion"].files) == ["fp32"]
    assert bundle.parts["fusion"].default == "fp32"
    assert not (bundle.folder / "onnx/fusion.int8.onnx").exists()
    assert "onnx/fusion.int8.onnx" not in bundle.manifest["files"]
    for name in ("audio", "scene"):
        assert bundle.parts[name].default == "int8"
    assert bundle.parts["expression"].default == "fp32", "its int8 form is slower"
    assert {(check.part, check.precision) for check in report.values} == {
        (name, precision) for name, part in bundle.parts.items() for precision in part.files
    }
    assert [(task.precision, task.problem) for task in report.tasks] == [("fp32", ""), ("int8", "")]


def test_a_loss_that_is_accepted_is_written_and_said_wherever_the_bundle_goes(trained: Path, tmp_path: Path) -> None:
    whole, edge = tmp_path / "whole", tmp_path / "edge"
    asked = ["--preset", "tiny", "--trained", str(trained), "--out", str(whole), "--accept-quality-loss"]
    done = CliRunner().invoke(cli, ["export", "bundle", *asked])
    assert done.exit_code == 0, done.output
    bundle = open_bundle(whole)
    found = {one["part"]: one for one in bundle.manifest["checks"][ACCEPTED]}
    assert {"fusion"} <= set(found) <= {"fusion", "text"}
    assert bundle.parts["fusion"].default == "int8"
    assert "labels differ from torch" in found["fusion"]["reason"]
    words = f"fusion: int8 was written although {found['fusion']['reason']}"
    assert words in done.output
    (int8,) = (task for task in bundle.manifest["checks"]["task"] if task["precision"] == "int8")
    assert int8["labels_kept"] < 0.99, "measured with it, not without"

    verified = CliRunner().invoke(cli, ["export", "check", str(whole), "--trained", str(trained)])
    assert verified.exit_code == 0, verified.output
    assert words in verified.output
    assert words in CliRunner().invoke(cli, ["bundle", "inspect", str(whole)]).output
    split = ["bundle", "split", str(whole), "--out", str(edge)]
    assert CliRunner().invoke(cli, split).exit_code == 0
    assert open_bundle(edge).manifest["checks"][ACCEPTED] == bundle.manifest["checks"][ACCEPTED]
    assert CliRunner().invoke(cli, [*split, "--precision", "fp32"]).exit_code == 0
    assert ACCEPTED not in open_bundle(edge).manifest["checks"]


@pytest.mark.usefixtures("exact_int8")
def test_what_one_target_runs_is_exported_alone(tmp_path: Path) -> None:
    out = tmp_path / "new" / "edge"
    asked = ["export", "bundle", "--preset", "tiny", "--out", str(out), "--split"]
    done = CliRunner().invoke(cli, asked)
    assert done.exit_code == 0, done.output
    bundle = open_bundle(out)
    assert bundle.id in done.output
    assert {name: list(part.files) for name, part in bundle.parts.items()} == {
        name: ["fp32" if name in ("expression", "detector") else "int8"] for name in bundle.parts
    }
    assert [path.name for path in out.parent.iterdir()] == ["edge"], "the whole one is gone"
    (tmp_path / "file").touch()
    nowhere = ["export", "bundle", "--preset", "tiny", "--out", str(tmp_path / "file" / "edge"), "--split"]
    assert isinstance(CliRunner().invoke(cli, nowhere).exception, BundleError)
    both = CliRunner().invoke(cli, [*asked, "--engine", "openvino", "--engine", "onnxruntime"])
    assert both.exit_code == 2
    assert "one --target" in both.output


def test_the_manifest_says_what_was_found(report: BundleReport, trained: Path, sharp: DecisionConfig) -> None:
    manifest = report.bundle.manifest
    checks = manifest["checks"]
    assert [check["part"] for check in checks["values"]] == [check.part for check in report.values]
    assert [task["labels_kept"] for task in checks["task"]] == [task.labels_kept for task in report.tasks]
    assert {task["split"] for task in checks["task"]} == {shipped_check_set().name}
    assert manifest["card"] == CARD
    assert manifest["weights"]["trained"] == file_sha256(trained / "model.safetensors")
    assert {"mechm", "torch", "onnxruntime"} <= set(manifest["versions"])
    assert report.bundle.decision == sharp
    assert set(manifest["model"]) >= {"preset", "text", "audio", "scene", "fusion"}
    assert manifest["licences"]["detector"]


def test_nothing_else_lies_there(report: BundleReport) -> None:
    bundle = report.bundle
    assert set(contents(bundle.folder)) == {MANIFEST, *bundle.manifest["files"]}
    assert [path.name for path in bundle.folder.parent.iterdir()] == ["bundle"]
    assert not (bundle.folder.stat().st_mode ^ bundle.folder.parent.joinpath("bundle", "onnx").stat().st_mode)


def test_parts_that_were_not_trained_are_those_of_the_other_bundle(report: BundleReport, tiny_bundle: Path) -> None:
    """Byte by byte, though another process exported them."""
    files, other = report.bundle.manifest["files"], open_bundle(tiny_bundle).manifest["files"]
    same = {name for name in files if files[name] == other[name]}
    assert same == {
        f"onnx/{part}.{precision}.onnx"
        for part in ("audio", "scene", "detector", "expression")
        for precision in ("fp32", "int8")
    } | {"tokenizer/tokenizer.json", "LICENCES.md"}


def test_what_was_written_verifies(report: BundleReport, trained: Path) -> None:
    again = verify_bundle(report.bundle.folder, trained=trained)
    assert again.bundle.id == report.bundle.id
    assert again.values == report.values
    assert [(task.precision, task.problem) for task in again.tasks] == [("default", "")]
    assert again.tasks[0].labels_kept == report.tasks[1].labels_kept


@pytest.mark.usefixtures("exact_int8")
def test_the_tiny_bundle_was_judged_fairly(tiny_bundle: Path, tiny_parts: Any, sharp: DecisionConfig) -> None:
    bundle = open_bundle(tiny_bundle)
    tasks, refused = gate_run.run_gate(bundle, gate_run.torch_reference(bundle, tiny_parts, shipped_check_set()))
    assert (refused, [task.problem for task in tasks]) == ({}, ["", ""])
    sharper = replace(bundle, decision=sharp)
    tasks, refused = gate_run.run_gate(sharper, gate_run.torch_reference(sharper, tiny_parts, shipped_check_set()))
    assert ("fusion", "int8") in refused
    assert [task.problem for task in tasks] == ["", ""]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, {}),
        ({"text": 1, "fusion": 1}, {}),
        ({"text": 9}, {"text": "9 of 132"}),
        ({"text": 9, "audio": 5, "fusion": 2}, {"text": "9 of 132", "audio": "5 of 132"}),
        ({"text": 2, "fusion": 1}, {"text": "together with other parts, 3 of 132"}),
        ({"text": 1, "audio": 2, "fusion": 2}, {"audio": "together", "fusion": "together"}),
        ({"text": 2, "audio": 2, "scene": 7}, {"scene": "7 of 132", "text": "together"}),
        (dict.fromkeys(("text", "audio", "scene", "detector", "expression", "fusion"), 3), dict.fromkeys(
            ("text", "audio", "scene", "detector", "expression", "fusion"), "3 of 132")),
    ],
)  # fmt: skip
def test_the_parts_to_blame_are_found_and_no_others(
    changed: dict[str, int],
    expected: dict[str, str],
    tiny_bundle: Path,
    tiny_parts: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Parts whose int8 form changes so many labels each, and together their sum."""

    def compare(_bundle: object, _reference: object, precisions: dict[str, str]) -> Any:
        n_changed = sum(changed.get(name, 0) for name, precision in precisions.items() if precision == "int8")
        yield TaskCheck("made-up", "int8" if "int8" in precisions.values() else "fp32", 12, 132,
                        round(1 - n_changed / 132, 5), 1.0, 0.0)  # fmt: skip

    monkeypatch.setattr(gate_run, "compare", compare)
    nothing = gate_run.TorchReference(shipped_check_set(), (), ())
    tasks, refused = gate_run.run_gate(open_bundle(tiny_bundle, check_hashes=False), nothing)
    assert refused.keys() == {(name, "int8") for name in expected}
    assert all(refused[name, "int8"].startswith(words) for name, words in expected.items()), refused
    assert [task.precision for task in tasks] == (["fp32"] if len(refused) == 6 else ["fp32", "int8"])


def test_a_wrong_fp32_graph_is_never_left_in(folder: Path, tiny_parts: Any, sharp: DecisionConfig) -> None:
    plant(folder / "onnx/fusion.fp32.onnx", 1.0)
    bundle = replace(open_bundle(rewrite(folder, lambda _manifest: None)), decision=sharp)
    reference = gate_run.torch_reference(bundle, tiny_parts, shipped_check_set())
    with pytest.raises(VerificationError, match=r"^fp32: \d+ of 132 labels differ"):
        gate_run.run_gate(bundle, reference)


# Failures on the way


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_failure_half_way_leaves_the_old_bundle(failure: Any, folder: Path) -> None:
    before = contents(folder)

    def fail(what: str) -> None:
        if what == "text: exporting int8":
            staging = [path for path in folder.parent.iterdir() if path != folder]
            assert len(staging) == 1, "it was at work beside its target"
            assert list(staging[0].rglob("text.fp32.onnx"))
            raise failure

    with pytest.raises((KeyboardInterrupt, BundleError)) as raised:
        export_bundle("tiny", folder, trained=None, on_step=fail)
    assert raised.type is KeyboardInterrupt or "No space left on device" in str(raised.value)
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]
    assert contents(folder) == before
    assert open_bundle(folder)


def test_an_old_bundle_comes_back_where_the_new_one_cannot_take_its_place(folder: Path, tmp_path: Path) -> None:
    before = contents(folder)
    (tmp_path / "staging").mkdir()
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "staging" / "never-written", folder)
    assert contents(folder) == before


def test_a_target_that_cannot_be_made_is_said_in_one_line(tmp_path: Path, tiny_parts: Any) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BundleError, match="cannot be written") as refused:
        export_bundle("tiny", tmp_path / "file" / "bundle", trained=None)
    assert refused.value.hint
    assert (tmp_path / "file").read_text() == "mine"


# Targets


def test_what_is_no_bundle_is_not_replaced(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_target(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    check_target(tmp_path / "empty")
    check_target(folder)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "broken link").symlink_to(tmp_path / "nothing")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"x")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / MANIFEST).write_text('{"entry": "main.js"}')
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / MANIFEST).write_text("[]")
    before = contents(tmp_path)
    for name in ("file", "link", "broken link", "photos", "web", "list"):
        with pytest.raises(BundleError) as refused:
            export_bundle("tiny", tmp_path / name, trained=None)
        assert "--out" in refused.value.hint
        assert name in str(refused.value)
    monkeypatch.chdir(tmp_path / "photos")
    with pytest.raises(BundleError, match="photos is a folder with other things"):
        export_bundle("tiny", Path(), trained=None)
    assert contents(tmp_path) == before


def test_a_bundle_with_something_else_in_it_is_not_replaced(folder: Path) -> None:
    (folder / "onnx" / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"holds more than its bundle: onnx/notes\.txt"):
        check_target(folder)
    (folder / "onnx" / "notes.txt").unlink()
    (folder / "onnx" / "text.fp32.onnx").write_bytes(b"damaged")
    (folder / "onnx" / "text.int8.onnx").unlink()
    check_target(folder)


@pytest.mark.parametrize("preset", ["small", "medium", ""])
def test_missing_weights_are_said_before_anything_is_written(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MECHM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(WeightsError) as refused:
        export_bundle(preset, tmp_path / "out" / "bundle", trained=None)
    assert refused.value.hint
    assert not (tmp_path / "out").exists()


# Verification


def plant(path: Path, shift: float) -> None:
    """Add to one weight of a graph."""
    model = onnx.load(path)
    tensor = next(i for i in model.graph.initializer if "emotion_head.bias" in i.name)
    values = numpy_helper.to_array(tensor).copy()
    values[0] += shift
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save_model(model, path)


def test_a_fresh_bundle_verifies(tiny_bundle: Path) -> None:
    before = contents(tiny_bundle)
    report = verify_bundle(tiny_bundle, trained=None)
    assert len(report.values) == 12
    assert contents(tiny_bundle) == before


def test_a_changed_byte_does_not(folder: Path) -> None:
    with (folder / "onnx/scene.fp32.onnx").open("r+b") as stream:
        stream.seek(1000)
        byte = stream.read(1)
        stream.seek(1000)
        stream.write(bytes([byte[0] ^ 1]))
    with pytest.raises(BundleError, match=r"scene\.fp32\.onnx was changed"):
        verify_bundle(folder, trained=None)


def test_a_changed_weight_does_not_though_all_hashes_agree(folder: Path) -> None:
    plant(folder / "onnx/fusion.fp32.onnx", 0.01)
    with pytest.raises(VerificationError, match=r"fusion\.fp32\.onnx differs from torch"):
        verify_bundle(rewrite(folder, lambda _manifest: None), trained=None)


def test_other_trained_weights_do_not(tiny_bundle: Path, trained: Path, report: BundleReport) -> None:
    for folder, weights in ((tiny_bundle, trained), (report.bundle.folder, None)):
        with pytest.raises(VerificationError, match="other weights") as refused:
            verify_bundle(folder, trained=weights)
        assert "--trained" in refused.value.hint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["decision"].update(pair_threshold=0.9), "decides with other constants"),
        (lambda m: m["preprocessing"]["fusion"].update(n_frames=2), "reads other sizes"),
        (lambda m: m["parts"].pop("audio"), "lacks the parts audio"),
        (lambda m: m.pop("weights"), "other weights"),
    ],
)
def test_another_manifest_does_not_though_its_id_agrees(change: Any, words: str, folder: Path) -> None:
    with pytest.raises(VerificationError, match=words):
        verify_bundle(rewrite(folder, change), trained=None)


def test_recordings_are_compared_too(tiny_bundle: Path, repository: Path) -> None:
    from mechm_runtime.readers import read_transcript

    sample = repository / "sample" / "conversation.mp4"
    recorded = read_transcript(sample.with_suffix(".srt"), media=sample)
    checks = CheckSet("mine", check_conversations()[:1], recorded)
    tasks = verify_bundle(tiny_bundle, trained=None, check_set=checks).tasks
    assert [(task.split, task.n_conversations) for task in tasks] == [("mine", 1), ("mine, recordings", 1)]
    assert tasks[1].n_utterances == len(recorded[0].utterances)
    assert tasks[1].weighted_f1 is None


# Layers that a diagnosis keeps


def test_layers_that_are_kept_are_in_fp32_in_int8_too(report: BundleReport, trained: Path, tmp_path: Path) -> None:
    before = report.bundle
    exact = before.path(before.parts["audio"].files["fp32"])
    weights = {i.name for i in onnx.load(exact).graph.initializer}
    layers = [n.name for n in onnx.load(exact).graph.node if n.op_type == "MatMul" and n.input[1] in weights]
    proposal = Proposal("audio", "int8", file_sha256(exact), (layers[-1],))
    made = export_bundle("tiny", tmp_path / "kept", trained=trained, keep=[proposal]).bundle
    sizes = [
        sum(n.op_type == "MatMulInteger" for n in onnx.load(one.path(one.parts["audio"].files["int8"])).graph.node)
        for one in (before, made)
    ]
    assert sizes[1] == sizes[0] - 1


def test_layers_of_another_graph_are_refused(trained: Path, tmp_path: Path) -> None:
    for part, words in (("text", "proposed for other weights"), ("llama", "no layers of the part llama")):
        proposal = Proposal(part, "int8", "0" * 64, ("node",))
        with pytest.raises(InputError, match=words):
            export_bundle("tiny", tmp_path / "out", trained=trained, keep=[proposal])
        assert not (tmp_path / "out").exists()


def test_sixteen_bits_that_change_answers_are_accepted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if fp16 of the fusion changed nine labels."""

    def compare(_bundle: object, _reference: object, precisions: dict[str, str]) -> Any:
        n_changed = 9 * (precisions["fusion"] == "fp16")
        name = "fp16" if "fp16" in precisions.values() else "fp32"
        yield TaskCheck("made-up", name, 12, 132, round(1 - n_changed / 132, 5), 1.0, 0.0)

    monkeypatch.setattr(gate_run, "compare", compare)
    monkeypatch.setattr(half_parts, "compare", compare)
    targets: tuple[Target, ...] = ("onnxruntime-gpu",)
    strict, lenient = (
        export_bundle("tiny", tmp_path / str(accepts), trained=None, targets=targets, accept_quality_loss=accepts)
        for accepts in (False, True)
    )
    reason = "9 of 132 labels differ from torch on made-up"
    assert (strict.refused, strict.accepted_losses) == ({("fusion", "fp16"): reason}, {})
    assert (lenient.refused, lenient.accepted_losses) == ({}, {("fusion", "fp16"): reason})
    assert ENGINES["onnxruntime-gpu"].default_precision(strict.bundle.parts["fusion"]) == "bf16"
    assert ENGINES["onnxruntime-gpu"].default_precision(lenient.bundle.parts["fusion"]) == "fp16"
    assert [task.problem for task in lenient.tasks] == ["", reason]
    assert lenient.problems == []
    lossy = tuple(replace(task, precision="w8") for task in lenient.tasks)
    assert replace(lenient, tasks=lossy).problems == [reason], "that was accepted of another precision"
