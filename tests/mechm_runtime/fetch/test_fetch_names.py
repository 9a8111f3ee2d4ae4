"""Names of bundles, the list that says where they lie, and the command."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from mechm_export.deployment.oci import write_layout
from mechm_export.deployment.wheel import write_wheel
from mechm_runtime.bundle.manifest import MANIFEST
from mechm_runtime.errors import BundleError, InputError
from mechm_runtime.fetch.fetch_bundle import fetch_bundle
from mechm_runtime.fetch.index import index_place


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def entry(url: str, content: bytes) -> dict[str, Any]:
    return {
        "url": url,
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
        "description": "for tests",
    }


@pytest.fixture
def listed(site: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A list with one bundle, as an archive, a folder and a registry's model."""
    wheel = write_wheel(bundle, tmp_path).read_bytes()
    site.files["/files/b.whl"] = wheel
    site.add_folder(bundle, "/files/folder")
    write_layout(bundle, tmp_path / "layout")
    digest = site.add_registry(tmp_path / "layout", "m", "v1")
    reference = f"oci://{site.url.removeprefix('http://')}/m:v1"
    bundles = {
        "small": entry("b.whl", wheel),
        "folder": entry("folder", (bundle / MANIFEST).read_bytes()),
        "registry": {**entry(reference, wheel), "sha256": digest},
    }
    site.files["/files/bundles.json"] = json.dumps(bundles).encode()
    monkeypatch.setenv("MECHM_BUNDLE_INDEX", f"{site.url}/files/bundles.json")
    return bundles


@pytest.mark.parametrize("name", ["small", "folder", "registry"])
def test_a_name_goes_into_the_cache_folder(listed: dict[str, Any], bundle: Path, cache: Path, name: str) -> None:
    got = fetch_bundle(name)
    assert got.bundle.folder == cache / "bundles" / name
    assert contents(got.bundle.folder) == contents(bundle)
    assert not fetch_bundle(name).is_new


def test_the_lists_hash_is_what_counts(site: Any, listed: dict[str, Any], cache: Path) -> None:
    listed["small"]["sha256"] = "5" * 64
    site.files["/files/bundles.json"] = json.dumps(listed).encode()
    with pytest.raises(BundleError, match="another sha256"):
        fetch_bundle("small")
    with pytest.raises(InputError, match="another sha256 for small"):
        fetch_bundle("small", sha256="6" * 64)


def test_a_list_may_be_a_file(
    listed: dict[str, Any], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"small": {**listed["folder"], "url": "bundle"}}))
    monkeypatch.setenv("MECHM_BUNDLE_INDEX", str(path))
    assert contents(fetch_bundle("small").bundle.folder) == contents(bundle)


def test_a_folder_here_counts_before_a_name_that_is_no_preset(
    listed: dict[str, Any], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    assert fetch_bundle("small").is_new
    assert fetch_bundle("bundle", tmp_path / "out").is_new


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"3", b'{"small": 3}', b'{"small": {}}', b"[" * 100_000, b'{"small": {"url": 1}}', b"null"],
)
def test_a_damaged_list_is_an_error_of_ours(site: Any, listed: dict[str, Any], content: bytes) -> None:
    site.files["/files/bundles.json"] = content
    with pytest.raises((BundleError, InputError)):
        fetch_bundle("small")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://models.example/x.tar", "ftp://a/b.tar"])
def test_a_list_may_not_lead_elsewhere(site: Any, listed: dict[str, Any], url: str) -> None:
    site.files["/files/bundles.json"] = json.dumps({"small": {**listed["small"], "url": url}}).encode()
    with pytest.raises((BundleError, InputError)):
        fetch_bundle("small")


def test_an_unknown_name_says_which_there_are(listed: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="has no large") as caught:
        fetch_bundle("large")
    assert "folder, registry, small" in caught.value.hint


def test_a_release_that_cannot_be_reached_says_what_else_works(monkeypatch: pytest.MonkeyPatch, site: Any) -> None:
    assert index_place().startswith("https://github.com/mechm/mechm/releases/download/v")
    monkeypatch.setenv("MECHM_BUNDLE_INDEX", f"{site.url}/nothing.json")
    with pytest.raises(BundleError, match="list of bundles cannot be read") as caught:
        fetch_bundle("small")
    for way in ("address", "oci://", "pip install", "mechm export bundle", "MECHM_BUNDLE_INDEX"):
        assert way in caught.value.hint


def test_the_command_works_in_a_light_install(
    fresh_python: Callable[..., CompletedProcess[str]], bundle: Path, tmp_path: Path, cache: Path
) -> None:
    heavy = ("torch", "transformers", "onnx", "onnxruntime", "av", "PIL", "httpx", "httpx2", "requests", "filelock")
    arguments = ["bundle", "fetch", str(bundle), "--out", str(tmp_path / "out")]
    done = fresh_python(f"from mechm.cli import main; main({arguments!r})", without=heavy, MECHM_CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    assert "wrote" in done.stdout
    assert contents(tmp_path / "out") == contents(bundle)
