"""A split bundle holds what one deployment runs and answers as the whole one does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mechm_export.deployment.split import Deployment, split_bundle
from mechm_runtime.bundle.manifest import MANIFEST, SIGNATURE, TOKENIZER_FILE, manifest_id
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.bundle.signature import sign_bundle, write_keys
from mechm_runtime.bundle.terms import LICENCES_FILE
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.errors import BundleError, InputError
from mechm_runtime.pipeline import Pipeline
from mechm_runtime.readers import read_transcript
from mechm_runtime.types import Conversation

ONE_THREAD = EngineConfig(n_threads=1)


@pytest.fixture(scope="module")
def recorded(repository: Path) -> Conversation:
    sample = repository / "sample"
    (conversation,) = read_transcript(sample / "conversation.srt", media=sample / "conversation.mp4")
    return conversation


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("precision", [None, "fp32", "int8"])
def test_it_answers_as_the_whole_bundle_does(
    precision: Any, tiny_bundle: Path, recorded: Conversation, tmp_path: Path
) -> None:
    bundle = split_bundle(tiny_bundle, tmp_path / "split", Deployment(precision=precision))
    expected = Pipeline.from_bundle(tiny_bundle, precision=precision, engine=ONE_THREAD).analyze(recorded)
    found = Pipeline.from_bundle(tmp_path / "split", engine=ONE_THREAD).analyze(recorded)
    assert found.utterances == expected.utterances
    assert found.pairs == expected.pairs
    assert {"audio", "scene"} <= {modality for u in found.utterances for modality in u.modalities}
    whole = open_bundle(tiny_bundle)
    assert found.bundle_id == bundle.id != whole.id
    assert bundle.manifest["split_from"] == whole.id
    assert {name: part.files for name, part in bundle.parts.items()} == {
        name: {precision or part.default: part.files[precision or part.default]} for name, part in whole.parts.items()
    }
    assert set(contents(tmp_path / "split")) == {MANIFEST, *bundle.manifest["files"]}
    (task,) = bundle.manifest["checks"]["task"]
    assert task["precision"] == ("fp32" if precision == "fp32" else "int8")
    assert {(check["part"], check["precision"]) for check in bundle.manifest["checks"]["values"]} == {
        (name, part.default) for name, part in bundle.parts.items()
    }


@pytest.mark.parametrize(
    ("modalities", "parts", "files"),
    [
        (("text",), {"text"}, {TOKENIZER_FILE}),
        (("audio",), {"audio"}, set()),
        (("face",), {"detector", "expression"}, set()),
        (("scene", "text"), {"scene", "text"}, {TOKENIZER_FILE}),
    ],
)
def test_modalities_that_are_left_out_count_as_absent(
    modalities: tuple[str, ...],
    parts: set[str],
    files: set[str],
    tiny_bundle: Path,
    recorded: Conversation,
    tmp_path: Path,
) -> None:
    bundle = split_bundle(tiny_bundle, tmp_path / "split", Deployment(modalities=modalities))
    graphs = {file for part in bundle.parts.values() for file in part.files.values()}
    assert set(bundle.parts) == {"fusion", *parts}
    assert set(bundle.manifest["files"]) == graphs | files | {LICENCES_FILE}
    assert ("detector" in bundle.manifest["licences"]) is ("face" in modalities)
    assert bundle.manifest["checks"]["task"] == [], "answers were checked with all parts"
    pipeline = Pipeline(bundle, engine=ONE_THREAD)
    assert set(pipeline.modalities) == set(modalities)
    expected = Pipeline.from_bundle(tiny_bundle, modalities=modalities, engine=ONE_THREAD).analyze(recorded)
    assert pipeline.analyze(recorded).utterances == expected.utterances


def test_the_same_split_twice_is_the_same_and_a_split_can_be_split(tiny_bundle: Path, tmp_path: Path) -> None:
    one = split_bundle(tiny_bundle, tmp_path / "one", Deployment(precision="int8"))
    assert split_bundle(tiny_bundle, tmp_path / "two", Deployment(precision="int8")).id == one.id
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    words = split_bundle(tmp_path / "one", tmp_path / "words", Deployment(modalities=("text",)))
    assert words.manifest["split_from"] == one.id
    with pytest.raises(BundleError, match="no fp32 file of its text part"):
        split_bundle(tmp_path / "one", tmp_path / "more", Deployment(precision="fp32"))
    with pytest.raises(BundleError, match="does not read audio"):
        split_bundle(tmp_path / "words", tmp_path / "more", Deployment(modalities=("audio", "text")))
    with pytest.raises(BundleError, match="has no Llama"):
        split_bundle(tmp_path / "words", tmp_path / "more", Deployment(llm="onnx"))


def test_a_signature_is_not_carried_to_another_manifest(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    write_keys(tmp_path / "key.pem")
    sign_bundle(folder, tmp_path / "key.pem")
    split_bundle(folder, tmp_path / "split", Deployment())
    assert not (tmp_path / "split" / SIGNATURE).exists()
    split_bundle(tiny_bundle, folder, Deployment(precision="fp32"))
    assert not (folder / SIGNATURE).exists(), "a bundle is replaced as a whole, its signature too"


@pytest.mark.parametrize(
    "deployment",
    [
        Deployment(precision="w8"),
        Deployment("openvino", "int8"),
        Deployment(modalities=("smell",)),
        Deployment(modalities=()),
        Deployment(precision="fp16"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    deployment: Deployment, tiny_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises((InputError, BundleError)) as refused:
        split_bundle(tiny_bundle, tmp_path / "split", deployment)
    assert refused.value.hint
    assert list(tmp_path.iterdir()) == []


def test_what_lies_there_is_kept(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"x")
    with pytest.raises(BundleError, match="with other things in it"):
        split_bundle(folder, tmp_path / "photos", Deployment())
    with pytest.raises(BundleError, match="in its own folder"):
        split_bundle(folder, folder, Deployment())
    graph = folder / "onnx/text.int8.onnx"
    graph.write_bytes(bytes(graph.stat().st_size))
    with pytest.raises(BundleError, match="was changed"):
        split_bundle(folder, tmp_path / "split", Deployment(precision="fp32"))
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "photos"}


def test_a_manifest_without_checks_and_licences_can_be_split(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    manifest = json.loads((folder / MANIFEST).read_text())
    for key in ("checks", "licences", "weights"):
        del manifest[key]
    manifest["id"] = manifest_id("tiny", manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    made = split_bundle(folder, tmp_path / "split", Deployment())
    assert made.manifest["checks"] == {"values": [], "task": []}
