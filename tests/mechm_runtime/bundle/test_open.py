"""Whatever a bundle folder holds, opening it gives a checked bundle or a BundleError with a hint."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mechm_runtime.bundle.config import FusionWindows
from mechm_runtime.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES, SCHEMA_VERSION, manifest_id
from mechm_runtime.bundle.open import file_sha256, open_bundle
from mechm_runtime.errors import BundleError
from mechm_runtime.system.cache_dir import cache_dir
from mechm_runtime.types import EMOTIONS

LISTED = (
    "LICENCES.md",
    *(
        f"onnx/{part}.{precision}.onnx"
        for part in ("audio", "detector", "expression", "fusion", "scene", "text")
        for precision in ("fp32", "int8")
    ),
    "tokenizer/tokenizer.json",
)
Manifest = dict[str, Any]


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def rewrite(folder: Path, change: Callable[[Manifest], object], *, seal: bool = True) -> None:
    """Change a bundle's manifest; `seal` gives it the id of its new content, as somebody who forges it would."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    if seal:
        manifest["id"] = manifest_id(str(manifest.get("preset")), manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def assert_refused(folder: Path | None, *words: str, check_hashes: bool = True) -> None:
    with pytest.raises(BundleError) as refused:
        open_bundle(folder, check_hashes=check_hashes)
    for word in words:
        assert word in str(refused.value)
    assert refused.value.exit_code == 2
    assert refused.value.hint
    assert "\n" not in str(refused.value)


def test_a_bundle_opens(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    assert bundle.id.startswith("tiny-")
    assert set(bundle.parts) == {"text", "audio", "scene", "detector", "expression", "fusion"}
    assert set(bundle.manifest["files"]) == set(LISTED)
    on_disk = {path.relative_to(tiny_bundle).as_posix() for path in tiny_bundle.rglob("*") if path.is_file()}
    assert on_disk == {*LISTED, MANIFEST}
    assert all(bundle.path(name).is_file() for name in LISTED)
    assert tuple(bundle.manifest["labels"]) == EMOTIONS
    assert bundle.fusion.window > 2 * bundle.fusion.window_context
    assert open_bundle(tiny_bundle, check_hashes=False).id == bundle.id


def test_a_bundle_from_before_the_detector_was_a_part_is_to_be_made_again(folder: Path) -> None:
    rewrite(folder, lambda manifest: manifest["parts"].pop("detector"))
    assert_refused(folder, "OpenCV", check_hashes=False)


def test_only_listed_files_are_handed_out(folder: Path) -> None:
    bundle = open_bundle(folder)
    (folder / "onnx" / "planted.onnx").write_bytes(b"?")
    for name in ("onnx/planted.onnx", MANIFEST, "../bundle/bundle.json"):
        with pytest.raises(BundleError, match="lists no"):
            bundle.path(name)


# Files


@pytest.mark.parametrize("name", LISTED)
def test_a_changed_byte_in_any_file_is_noticed(name: str, folder: Path) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 3] ^= 0x10
    (folder / name).write_bytes(content)
    assert_refused(folder, name, "sha256 differs")
    open_bundle(folder, check_hashes=False)


@pytest.mark.parametrize("name", LISTED)
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    assert_refused(folder, f"{name} is missing", check_hashes=False)


@pytest.mark.parametrize("change", [b"more", None])
def test_another_size_is_noticed_without_hashing(change: bytes | None, folder: Path) -> None:
    path = folder / "onnx/audio.int8.onnx"
    path.write_bytes(path.read_bytes() + change if change else path.read_bytes()[:-1])
    assert_refused(folder, "onnx/audio.int8.onnx was changed", "bytes", check_hashes=False)


def test_a_linked_file_is_refused_though_its_content_is_right(folder: Path, tmp_path: Path) -> None:
    moved = (folder / "onnx/text.int8.onnx").rename(tmp_path / "elsewhere.onnx")
    (folder / "onnx/text.int8.onnx").symlink_to(moved)
    assert_refused(folder, "onnx/text.int8.onnx is a link")


def test_a_linked_folder_inside_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "onnx").rename(tmp_path / "elsewhere")
    (folder / "onnx").symlink_to(tmp_path / "elsewhere")
    assert_refused(folder, "is a link")


def test_a_linked_manifest_is_refused(folder: Path, tmp_path: Path) -> None:
    moved = (folder / MANIFEST).rename(tmp_path / "elsewhere.json")
    (folder / MANIFEST).symlink_to(moved)
    assert_refused(folder, "bundle.json is a link")


def test_a_bundle_may_itself_be_reached_by_a_link(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(tiny_bundle)
    assert open_bundle(tmp_path / "current").id == open_bundle(tiny_bundle).id


@pytest.mark.parametrize("name", ["onnx/fusion.fp32.onnx", MANIFEST])
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_special_file_is_refused_and_never_opened(kind: str, name: str, folder: Path) -> None:
    (folder / name).unlink()
    if kind == "pipe":
        os.mkfifo(folder / name)  # opening it would wait for ever
    else:
        (folder / name).mkdir()
    assert_refused(folder, name, "special file")


@pytest.mark.parametrize(
    "name",
    [
        "../outside.onnx",
        "onnx/../../outside.onnx",
        "onnx/../bundle.json",
        "/etc/hostname",
        "//etc/hostname",
        "..\\outside.onnx",
        "C:outside.onnx",
        "C:/outside.onnx",
        "onnx/text.fp32.onnx\0.txt",
        "./onnx/text.fp32.onnx",
        "onnx//text.fp32.onnx",
        "onnx/",
        ".",
        "",
    ],
)
def test_a_path_that_leaves_the_folder_is_refused(name: str, folder: Path) -> None:
    (folder.parent / "outside.onnx").write_bytes(b"x")
    facts = {"size_bytes": 1, "sha256": file_sha256(folder.parent / "outside.onnx")}
    rewrite(folder, lambda manifest: manifest["files"].update({name: facts}))
    assert_refused(folder, "leaves its folder", check_hashes=False)


def test_a_file_below_a_file_is_refused(folder: Path) -> None:
    facts = {"size_bytes": 1, "sha256": "0" * 64}
    rewrite(folder, lambda manifest: manifest["files"].update({"tokenizer/tokenizer.json/x": facts}))
    assert_refused(folder, "tokenizer.json/x")


def test_an_endless_name_is_refused(folder: Path) -> None:
    facts = {"size_bytes": 1, "sha256": "0" * 64}
    rewrite(folder, lambda manifest: manifest["files"].update({"x" * 5000: facts}))
    assert_refused(folder, "is missing")


# The manifest

UNREADABLE = {
    "empty": b"",
    "not JSON": b"{'a': 1}",
    "not UTF-8": b'{"preset": "\xff"}',
    "a list": b"[]",
    "a number": b"12",
    "null": b"null",
    "deep": b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "an endless number": b'{"schema_version": ' + b"9" * 10_000 + b"}",
    "no schema": b'{"preset": "tiny"}',
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_an_unreadable_manifest_is_refused(what: str, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(UNREADABLE[what])
    assert_refused(folder, MANIFEST)


def test_a_huge_manifest_is_not_read(folder: Path) -> None:
    with (folder / MANIFEST).open("r+b") as stream:
        stream.truncate(MAX_MANIFEST_BYTES + 1)
    assert_refused(folder, "larger than 4 MiB")


def test_a_changed_manifest_is_noticed(folder: Path) -> None:
    rewrite(folder, lambda manifest: manifest["decision"].update(pair_threshold=0.01), seal=False)
    assert_refused(folder, "changed after it was written")


def test_a_newer_schema_asks_for_a_newer_library(folder: Path) -> None:
    rewrite(folder, lambda manifest: manifest.update(schema_version=SCHEMA_VERSION + 1, parts="another form"))
    with pytest.raises(BundleError, match=f"schema {SCHEMA_VERSION + 1}") as refused:
        open_bundle(folder)
    assert refused.value.hint == "pip install --upgrade mechm"


@pytest.mark.parametrize("version", [None, 0, -1, "1", 1.0, True, [1]])
def test_a_schema_that_is_no_number_is_none(version: object, folder: Path) -> None:
    rewrite(folder, lambda manifest: manifest.update(schema_version=version))
    assert_refused(folder, "no schema version")


def put(value: object, *keys: str) -> Callable[[Manifest], None]:
    """A change that sets one value deep inside."""

    def change(manifest: Manifest) -> None:
        inner: Any = manifest
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return change


def drop(*keys: str) -> Callable[[Manifest], None]:
    """A change that removes one value deep inside."""

    def change(manifest: Manifest) -> None:
        inner: Any = manifest
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]

    return change


@pytest.mark.parametrize(
    "change",
    [
        put(list(reversed(EMOTIONS)), "labels"),
        put(list(EMOTIONS[:6]), "labels"),
        put("neutral", "labels"),
        drop("labels"),
        drop("preset"),
        drop("parts"),
        put([], "parts"),
        drop("files"),
        put([], "files"),
        put("all", "files"),
        put({}, "files"),
        put(None, "files", "onnx/text.fp32.onnx"),
        put([1, 2], "files", "onnx/text.fp32.onnx"),
        put("1", "files", "onnx/text.fp32.onnx", "size_bytes"),
        put(None, "files", "onnx/text.fp32.onnx", "sha256"),
        drop("files", "onnx/text.int8.onnx"),
        put("fp16", "parts", "text", "default"),
        drop("parts", "text", "default"),
        put({}, "parts", "text", "files"),
        put({"fp32": 3, "int8": 3}, "parts", "text", "files"),
        put(["fp32"], "parts", "text", "default"),
        put([{"name": "x"}], "parts", "text", "inputs"),
        put([{"name": "x", "dtype": "float32", "axes": [1.5]}], "parts", "text", "inputs"),
        put(3, "parts", "text", "outputs"),
        put(None, "parts", "text"),
        drop("preprocessing"),
        drop("preprocessing", "text"),
        drop("preprocessing", "text", "max_tokens"),
        put(1, "preprocessing", "text", "surprise"),
        put("64", "preprocessing", "text", "max_tokens"),
        put(64.0, "preprocessing", "text", "max_tokens"),
        put(2, "preprocessing", "text", "max_tokens"),
        put(0, "preprocessing", "log_mel", "hop_length"),
        put(True, "preprocessing", "log_mel", "hop_length"),
        put(10**400, "preprocessing", "log_mel", "offset"),
        put(float("nan"), "preprocessing", "log_mel", "offset"),
        put(float("inf"), "preprocessing", "log_mel", "scale"),
        put([0.5, 0.5], "preprocessing", "scene", "mean"),
        put([0.5, 0.5, "x"], "preprocessing", "scene", "std"),
        put([0.5, 0.5, 0.0], "preprocessing", "scene", "std"),
        put(2.0, "preprocessing", "faces", "min_score"),
        put({"a": 1}, "preprocessing", "faces"),
        put(0, "preprocessing", "fusion", "n_frames"),
        put(2, "preprocessing", "fusion", "window"),
        drop("decision"),
        put([0.0] * 6, "decision", "emotion_bias"),
        put([0.0] * 6 + [None], "decision", "emotion_bias"),
        put(0, "decision", "emotion_temperature"),
        put(1e999, "decision", "pair_scale"),
        put("\ud800", "card", "warning"),
        put("text", "card", "learned"),
        put(["text", "smell"], "card", "learned"),
    ],
)
def test_a_sealed_manifest_with_a_wrong_value_is_damaged(change: Callable[[Manifest], None], folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    try:
        manifest["id"] = manifest_id(str(manifest.get("preset")), manifest)
    except UnicodeEncodeError:  # such text has no hash, so nobody can seal it
        manifest["id"] = "tiny-000000000000"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert_refused(folder, f"{MANIFEST} is damaged", check_hashes=False)


def test_a_whole_number_may_stand_for_a_fraction(folder: Path) -> None:
    rewrite(folder, put(1, "decision", "pair_threshold"))
    threshold = open_bundle(folder).decision.pair_threshold
    assert (threshold, type(threshold)) == (1.0, float)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(1),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
REUSED = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@REUSED
@given(content=st.dictionaries(st.sampled_from(["schema_version", "labels", "id", "parts", "files", "preset"]), JSON))
def test_no_manifest_raises_anything_else(content: Manifest, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    assert_refused(tmp_path)


@REUSED
@given(data=st.data())
def test_no_value_in_a_sealed_manifest_raises_anything_else(
    data: st.DataObject, tiny_bundle: Path, tmp_path: Path
) -> None:
    """Any one value of a good manifest replaced by anything: it opens or is a BundleError, and hints at what to do."""
    manifest = json.loads((tiny_bundle / MANIFEST).read_text())
    inner: Any = manifest
    while True:
        key = data.draw(st.sampled_from(list(inner) if isinstance(inner, dict) else range(len(inner))))
        if not inner[key] or not isinstance(inner[key], (dict, list)) or data.draw(st.booleans()):
            break
        inner = inner[key]
    inner[key] = data.draw(JSON)
    try:
        manifest["id"] = manifest_id(str(manifest.get("preset")), manifest)
    except UnicodeEncodeError:
        return
    for name in ("onnx", "tokenizer"):
        if not (tmp_path / name).exists():
            shutil.copytree(tiny_bundle / name, tmp_path / name)
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    hint = "opened"
    try:
        open_bundle(tmp_path, check_hashes=False)
    except BundleError as error:
        hint = error.hint
    assert hint


# Where it lies


def test_no_folder_is_told_from_no_bundle(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nothing", "no bundle at")
    assert_refused(tmp_path, "is not a bundle", MANIFEST)
    (tmp_path / "file").write_text("x")
    assert_refused(tmp_path / "file", "no bundle at")
    assert_refused(tmp_path / ("x" * 300), "no bundle at")
    assert_refused(tmp_path / "a\0b", "no bundle at")


def test_the_environment_names_the_default(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHM_BUNDLE", str(tiny_bundle))
    assert open_bundle().folder == tiny_bundle
    monkeypatch.setenv("MECHM_BUNDLE", str(tmp_path / "gone"))
    with pytest.raises(BundleError, match="gone") as refused:
        open_bundle()
    assert "MECHM_BUNDLE" in refused.value.hint
    with pytest.raises(BundleError) as refused:
        open_bundle(tmp_path / "other")
    assert "MECHM_BUNDLE" not in refused.value.hint


def test_the_default_lies_in_the_cache_folder(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MECHM_BUNDLE", raising=False)
    monkeypatch.setenv("MECHM_CACHE", str(tmp_path))
    with pytest.raises(BundleError) as refused:
        open_bundle()
    assert refused.value.hint.startswith("mechm bundle fetch small")
    shutil.copytree(tiny_bundle, cache_dir() / "bundles" / "small")
    assert open_bundle().id == open_bundle(tiny_bundle).id


def test_windows_without_a_core_are_no_windows() -> None:
    sizes = dict.fromkeys(("n_frames", "max_faces", "audio_tokens", "audio_width", "scene_width"), 1)
    with pytest.raises(ValueError, match="wider than its context"):
        FusionWindows(window=8, window_context=4, text_width=1, face_width=1, **sizes)
