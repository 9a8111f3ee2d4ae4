"""Bundles from an OCI registry: tokens, digests, redirected blobs, and what a registry must not be believed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from mechm_export.deployment.oci import write_layout
from mechm_runtime.bundle.manifest import MANIFEST
from mechm_runtime.errors import BundleError, InputError, MechmError
from mechm_runtime.fetch.fetch_bundle import fetch_bundle
from mechm_runtime.fetch.registry import is_reference, read_reference


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def registry(site: Any, bundle: Path, tmp_path: Path) -> tuple[str, str]:
    """A registry with the bundle as `team/m:v1`; gives the start of its references and the manifest's sha256."""
    write_layout(bundle, tmp_path / "layout", tag="v1")
    digest = site.add_registry(tmp_path / "layout", "team/m", "v1")
    return f"{site.url.removeprefix('http://')}/team/m", digest


@pytest.mark.parametrize("token", ["", "anonymous"])
def test_a_model_is_fetched_by_tag_and_by_digest(
    site: Any, registry: tuple[str, str], bundle: Path, tmp_path: Path, token: str
) -> None:
    site.bearer = token
    reference, digest = registry
    for n, source in enumerate((f"oci://{reference}:v1", f"{reference}@sha256:{digest}", f"{reference}:v1")):
        fetch_bundle(source, tmp_path / str(n), sha256=digest)
        assert contents(tmp_path / str(n)) == contents(bundle)


def test_a_token_that_runs_out_is_renewed(site: Any, registry: tuple[str, str], bundle: Path, tmp_path: Path) -> None:
    site.bearer = "one"
    blob = next(name for name in site.files if "/blobs/" in name)
    site.statuses[blob] = []
    real = site.files[blob]

    class Renewing(dict[str, bytes]):
        def __getitem__(self, name: str) -> bytes:
            if name == blob and site.bearer == "one":
                site.bearer = "two"
            return super().__getitem__(name)

    site.files = Renewing(site.files)
    fetch_bundle(f"oci://{registry[0]}:v1", tmp_path / "out")
    assert real == site.files[blob]
    assert contents(tmp_path / "out") == contents(bundle)


def test_blobs_may_lie_elsewhere_and_the_token_stays_here(
    site: Any, other_site: Any, registry: tuple[str, str], bundle: Path, tmp_path: Path
) -> None:
    site.bearer = "anonymous"
    for name in [name for name in site.files if "/blobs/" in name]:
        other_site.files[name] = site.files.pop(name)
        site.redirects[name] = f"{other_site.url}{name}"
    fetch_bundle(f"oci://{registry[0]}:v1", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(bundle)
    assert other_site.requests
    assert not any("authorization" in headers for _, headers in other_site.requests)


def test_an_index_of_one_model_is_followed(site: Any, registry: tuple[str, str], bundle: Path, tmp_path: Path) -> None:
    reference, digest = registry
    kind = "application/vnd.oci.image.index.v1+json"
    index = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": [{"digest": f"sha256:{digest}"}]}).encode()
    site.files["/v2/team/m/manifests/all"] = index
    fetch_bundle(f"oci://{reference}:all", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(bundle)


def test_a_manifest_of_another_digest_is_refused(site: Any, registry: tuple[str, str], tmp_path: Path) -> None:
    reference, digest = registry
    site.files[f"/v2/team/m/manifests/sha256:{digest}"] += b" "
    with pytest.raises(BundleError, match="another manifest"):
        fetch_bundle(f"{reference}@sha256:{digest}", tmp_path / "out")
    with pytest.raises(BundleError, match="another sha256"):
        fetch_bundle(f"{reference}:v1", tmp_path / "out", sha256="4" * 64)


def test_a_changed_blob_is_refused(site: Any, registry: tuple[str, str], bundle: Path, tmp_path: Path) -> None:
    sha256 = hashlib.sha256(next(bundle.rglob("*.onnx")).read_bytes()).hexdigest()
    name = f"/v2/team/m/blobs/sha256:{sha256}"
    site.files[name] = b"!" + site.files[name][1:]
    with pytest.raises(BundleError, match="another sha256"):
        fetch_bundle(f"oci://{registry[0]}:v1", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def republish(site: Any, change: Any) -> None:
    manifest = json.loads(site.files["/v2/team/m/manifests/v1"])
    change(manifest)
    site.files["/v2/team/m/manifests/v1"] = json.dumps(manifest).encode()


def layer_of(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in manifest["layers"] if one["annotations"]["org.cncf.model.filepath"] == name)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: layer_of(manifest, MANIFEST).update(size=1 << 50),
        lambda manifest: layer_of(manifest, MANIFEST).update(digest="sha256:../../x"),
        lambda manifest: layer_of(manifest, "tokenizer/tokenizer.json").update(size=1 << 50),
        lambda manifest: layer_of(manifest, "tokenizer/tokenizer.json").update(digest="sha256:" + "0" * 64),
        lambda manifest: manifest.update(artifactType="application/x"),
        lambda manifest: manifest.update(layers=[]),
        lambda manifest: manifest.update(layers={"a": 1}),
        lambda manifest: manifest.pop("layers"),
    ],
)
def test_forged_manifests_are_errors_of_ours(site: Any, registry: tuple[str, str], tmp_path: Path, change: Any) -> None:
    republish(site, change)
    with pytest.raises(BundleError):
        fetch_bundle(f"oci://{registry[0]}:v1", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b'"x"', b'{"mediaType": 3}', b"\xff"])
def test_answers_that_are_no_manifest_are_errors_of_ours(
    site: Any, registry: tuple[str, str], tmp_path: Path, content: bytes
) -> None:
    site.files["/v2/team/m/manifests/v1"] = content
    with pytest.raises(BundleError):
        fetch_bundle(f"oci://{registry[0]}:v1", tmp_path / "out")


def test_a_registry_that_wants_a_login_is_said(site: Any, registry: tuple[str, str], tmp_path: Path) -> None:
    site.bearer = "secret"
    site.statuses["/token"] = [401]
    with pytest.raises(BundleError, match="answers 401") as caught:
        fetch_bundle(f"oci://{registry[0]}:v1", tmp_path / "out")
    assert "OCI layout" in caught.value.hint
    with pytest.raises(BundleError, match="answers 404"):
        fetch_bundle(f"oci://{registry[0]}:v9", tmp_path / "out")


@pytest.mark.parametrize("realm", ["http://evil.example/token", "file:///etc/passwd", "x"])
def test_tokens_are_asked_for_over_https_alone(
    site: Any, registry: tuple[str, str], tmp_path: Path, realm: str
) -> None:
    site.bearer, site.realm = "t", realm
    with pytest.raises(MechmError):
        fetch_bundle(f"oci://{registry[0]}:v1", tmp_path / "out")


def test_references_are_told_from_paths_and_names() -> None:
    assert is_reference("ghcr.io/mechm/bundle:v1")
    assert is_reference("localhost:5000/m@sha256:" + "a" * 64)
    for other in ("small", "layout", "a/b:c", "./x.tar", "models.example/bundle.tar", "C:/bundle", "/home/x:1"):
        assert not is_reference(other)
    found = read_reference("oci://ghcr.io/mechm/bundle:v1")
    assert found.url == "https://ghcr.io/v2/mechm/bundle"
    assert read_reference("oci://docker.io/mechm/bundle:v1").url == "https://registry-1.docker.io/v2/mechm/bundle"
    for wrong in (
        "oci://ghcr.io/mechm/bundle",
        "oci://ghcr.io/../x:v1",
        "oci://a b/m:v1",
        "oci://",
        "oci://u:p@h/m:v1",
    ):
        with pytest.raises(InputError):
            read_reference(wrong)
