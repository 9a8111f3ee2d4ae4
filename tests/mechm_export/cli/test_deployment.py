"""`mechm bundle`: what it prints and how it exits, in a light install too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mechm.cli import main
from mechm_export.deployment.difference import compare_bundles
from mechm_runtime.bundle.manifest import MANIFEST, manifest_id
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.bundle.signature import sign_bundle, write_keys

LIGHT = (
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "safetensors",
    "cryptography",
    "av",
    "PIL",
)


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to change."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    manifest = json.loads((folder / MANIFEST).read_text())
    edit(manifest)
    manifest["id"] = manifest_id(manifest["preset"], manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as ended:
        main(["bundle", *map(str, arguments)])
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def test_inspect_tells_what_is_inside(
    tiny_bundle: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(tiny_bundle)
    monkeypatch.setenv("MECHM_BUNDLE", str(tiny_bundle))
    code, printed, _ = run(capsys, "inspect")
    assert code == 0
    said = " ".join(printed.split())
    for words in (bundle.id, "not signed", "text fp32", "int8 *", "input_ids attention_mask", "YuNet", "torch", "132"):
        assert words in said
    code, printed, _ = run(capsys, "inspect", tiny_bundle, "--json")
    found = json.loads(printed)
    assert (found["id"], found["is_signed"], found["llama"]) == (bundle.id, False, [])
    assert found["size_bytes"] == sum(path.stat().st_size for path in tiny_bundle.rglob("*.*") if path.name != MANIFEST)
    (text,) = [part for part in found["parts"] if part["name"] == "text"]
    assert [p["name"] for p in text["precisions"] if p["is_default"]] == ["int8"]
    assert text["inputs"][0] == {"name": "input_ids", "dtype": "int64", "axes": ["batch", "tokens"]}
    values = {(check["part"], check["precision"]): check for check in bundle.manifest["checks"]["values"]}
    assert text["precisions"][1]["cosine"] == values["text", "int8"]["cosine"]
    assert found["scores"] == bundle.manifest["checks"]["task"]
    write_keys(tmp_path / "key.pem")
    sign_bundle(folder, tmp_path / "key.pem")
    assert json.loads(run(capsys, "inspect", folder, "--json")[1])["is_signed"] is True


def test_diff_finds_what_was_changed_and_where(
    tiny_bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed, _ = run(capsys, "diff", tiny_bundle, folder)
    assert (code, printed) == (0, f"both are {open_bundle(tiny_bundle).id}\n")
    assert (run(capsys, "diff", tiny_bundle, folder, "--json")[1]) == "[]\n"

    def edit(manifest: dict[str, Any]) -> None:
        manifest["weights"]["trained"] = "0" * 64
        manifest["decision"]["pair_threshold"] = 0.125
        manifest["parts"]["text"]["default"] = "fp32"
        manifest["versions"]["torch"] = "9.9"
        manifest["licences"]["detector"] = "unknown"
        manifest["checks"]["values"].pop(0)
        manifest["checks"]["task"][0]["weighted_f1"] = 0.5
        manifest["extra"] = 1

    before = open_bundle(tiny_bundle).manifest
    code, printed, _ = run(capsys, "diff", tiny_bundle, change(folder, edit))
    assert code == 1
    sections = [line.rstrip(":") for line in printed.splitlines() if not line.startswith(" ")]
    assert sections == ["weights", "constants", "parts", "scores", "versions", "licences", "other"]
    lines = [line.strip() for line in printed.splitlines() if line.startswith(" ")]
    assert len(lines) == 8, "one a change, however many checks stand behind the one that is gone"
    assert f"decision.pair_threshold: {before['decision']['pair_threshold']} -> 0.125" in lines
    assert f"versions.torch: {before['versions']['torch']} -> 9.9" in lines
    assert "extra: absent -> 1" in lines
    code, printed, _ = run(capsys, "diff", folder, tiny_bundle, "--json")
    assert code == 1
    found = [(d["section"], d["name"], d["before"], d["after"]) for d in json.loads(printed)]
    assert ("constants", "decision.pair_threshold", 0.125, before["decision"]["pair_threshold"]) in found
    assert ("weights", "weights.trained", "0" * 64, "absent") in found


def test_diff_names_files_by_their_hash(tiny_bundle: Path, folder: Path) -> None:
    graph = folder / "onnx/audio.int8.onnx"
    content = bytearray(graph.read_bytes())
    content[-1] ^= 1
    graph.write_bytes(content)
    change(folder, lambda manifest: manifest["files"]["onnx/audio.int8.onnx"].update(sha256="1" * 64))
    (found,) = compare_bundles(open_bundle(tiny_bundle), open_bundle(folder, check_hashes=False))
    assert (found.section, found.name, found.after) == ("files", "files.onnx/audio.int8.onnx.sha256", "1" * 64)


def test_keys_signatures_and_verdicts(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key, public = tmp_path / "key.pem", tmp_path / "key.pub"
    assert run(capsys, "keygen", "--out", key)[0] == 0
    assert run(capsys, "verify", folder)[:2] == (0, f"{folder} is whole ({open_bundle(folder).id}); not signed\n")
    code, _, error = run(capsys, "verify", folder, "--key", public)
    assert (code, error.splitlines()[0]) == (2, f"error: {folder} is not signed")
    assert run(capsys, "sign", folder, "--key", key)[0] == 0
    assert "was not checked" in run(capsys, "verify", folder)[1]
    assert f"signed by {public}" in run(capsys, "verify", folder, "--key", public)[1]
    assert run(capsys, "keygen", "--out", key)[0] == 2
    change(folder, lambda manifest: manifest["decision"].update(pair_threshold=0.5))
    assert run(capsys, "verify", folder)[0] == 0
    assert run(capsys, "verify", folder, "--key", public)[0] == 2
    monkeypatch.setenv("MECHM_KEY_PASSWORD", "sesame")
    assert run(capsys, "sign", folder, "--key", key)[0] == 0, "a password that no key needs is not asked for"


def test_every_writer_works_in_a_light_install(
    tiny_bundle: Path, tmp_path: Path, fresh_python: Callable[..., Any]
) -> None:
    commands = [
        ["inspect", str(tiny_bundle)],
        ["verify", str(tiny_bundle)],
        ["split", str(tiny_bundle), "--out", "split", "--precision", "int8", "--modalities", "text, audio"],
        ["to-wheel", "split", "--out", "wheels", "--name", "mechm-bundle-edge"],
        ["to-triton", "split", "--out", "models"],
        ["to-oci", "split", "--out", "layout"],
        ["to-oci", "split", "--out", "layout.tar", "--tar", "--tag", "v1"],
        ["from-oci", "layout", "--out", "back"],
        ["diff", "split", "back"],
    ]
    code = f"""
import os, sys
os.chdir({str(tmp_path)!r})
from mechm.cli import main
for command in {commands!r}:
    try:
        main(["bundle", *command])
    except SystemExit as ended:
        assert not ended.code, (command, ended.code)
"""
    done = fresh_python(code, without=LIGHT)
    assert done.returncode == 0, done.stderr
    bundle = open_bundle(tmp_path / "split")
    assert bundle.modalities == ("text", "audio")
    assert open_bundle(tmp_path / "back").id == bundle.id
    assert f"both are {bundle.id}" in done.stdout
    assert "mechm_fusion" in done.stdout
    assert [path.suffix for path in (tmp_path / "wheels").iterdir()] == [".whl"]
    assert "checking hashes" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        "split", "wheels", "models", "layout", "layout.tar", "back",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["split", "gone", "--out", "x"], "no bundle at gone"),
        (["inspect", "package:nowhere"], "no package nowhere"),
        (["split", "BUNDLE", "--out", "x", "--modalities", "smell"], "unknown modality 'smell'"),
        (["split", "BUNDLE", "--out", "x", "--engine", "openvino", "--precision", "int8"], "does not run int8"),
        (["to-wheel", "BUNDLE", "--out", "x", "--name", "9"], "is no name"),
        (["from-oci", "BUNDLE", "--out", "x"], "is no OCI image layout"),
    ],
)
def test_what_cannot_be_is_an_error_with_a_hint(
    arguments: list[str],
    words: str,
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error = run(capsys, *[str(tiny_bundle) if word == "BUNDLE" else word for word in arguments])
    assert code == 2
    assert words in error
    assert "hint: " in error
    assert list(tmp_path.iterdir()) == []
