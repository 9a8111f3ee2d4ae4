"""A bundle's files are checked as they are read: what changes after the bundle was opened goes nowhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mechm_export.deployment.contents import Contents
from mechm_runtime.bundle.manifest import MANIFEST
from mechm_runtime.bundle.open import file_sha256, open_bundle
from mechm_runtime.errors import BundleError


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to change."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def test_every_file_is_copied_and_counted(folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    contents = Contents(open_bundle(folder), "copying", lambda *step: seen.append(step))
    for name in contents.names:
        contents.copy(name, tmp_path / "copy" / name)
        assert file_sha256(tmp_path / "copy" / name) == contents.sha256(name)
    assert open_bundle(tmp_path / "copy").id == open_bundle(folder).id
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert {(doing, whole) for doing, _, whole in seen} == {("copying", total)}
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1][1] == total


def test_a_file_that_changes_after_opening_is_noticed(folder: Path, tmp_path: Path) -> None:
    contents = Contents(open_bundle(folder), "copying")
    graph = folder / "onnx/text.int8.onnx"
    graph.write_bytes(bytes(graph.stat().st_size))
    with pytest.raises(BundleError, match="changed while it was read"):
        contents.copy("onnx/text.int8.onnx", tmp_path / "copy")
    graph.unlink()
    graph.symlink_to(folder / "onnx/text.fp32.onnx")
    with pytest.raises(BundleError, match="is a link"):
        contents.copy("onnx/text.int8.onnx", tmp_path / "copy")


def test_a_manifest_that_changes_after_opening_is_noticed(folder: Path) -> None:
    bundle = open_bundle(folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "preset": "other"}))
    with pytest.raises(BundleError, match="changed while it was read"):
        Contents(bundle, "copying")
