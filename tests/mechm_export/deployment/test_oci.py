"""A bundle's OCI layout: true digests, the same bytes again, and back to the same bundle whatever somebody changed."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mechm_export.deployment.oci import read_layout, write_layout
from mechm_runtime.bundle.manifest import MANIFEST, SIGNATURE
from mechm_runtime.bundle.open import file_sha256, open_bundle
from mechm_runtime.bundle.signature import open_signed_bundle, sign_bundle, write_keys
from mechm_runtime.errors import BundleError, InputError


@pytest.fixture(scope="module")
def written(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("oci") / "layout"
    write_layout(tiny_bundle, out, tag="v1")
    return out


@pytest.fixture
def layout(written: Path, tmp_path: Path) -> Path:
    """A copy, to damage."""
    return Path(shutil.copytree(written, tmp_path / "layout"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def blob(layout: Path, digest: str) -> Path:
    algorithm, _, digits = digest.partition(":")
    return layout / "blobs" / algorithm / digits


def read(layout: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The index and the image manifest."""
    index = json.loads((layout / "index.json").read_bytes())
    return index, json.loads(blob(layout, index["manifests"][0]["digest"]).read_bytes())


def rewrite(layout: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the image manifest and make the layout consistent again, as somebody who forges it would."""
    index, manifest = read(layout)
    change(manifest)
    content = json.dumps(manifest).encode()
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    blob(layout, digest).write_bytes(content)
    index["manifests"][0] |= {"digest": digest, "size": len(content)}
    (layout / "index.json").write_text(json.dumps(index))


def test_every_digest_and_size_is_true(written: Path, tiny_bundle: Path) -> None:
    assert json.loads((written / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index, manifest = read(written)
    assert index["manifests"][0]["annotations"] == {"org.opencontainers.image.ref.name": "v1"}
    described = [index["manifests"][0], manifest["config"], *manifest["layers"]]
    for one in described:
        assert file_sha256(blob(written, one["digest"])) == one["digest"].removeprefix("sha256:")
        assert blob(written, one["digest"]).stat().st_size == one["size"]
    present = {f"sha256:{path.name}" for path in (written / "blobs" / "sha256").iterdir()}
    assert present == {one["digest"] for one in described}
    files = open_bundle(tiny_bundle).manifest["files"]
    layers = {layer["annotations"]["org.cncf.model.filepath"]: layer for layer in manifest["layers"]}
    assert set(layers) == {MANIFEST, *files}
    assert all(layers[name]["digest"] == f"sha256:{facts['sha256']}" for name, facts in files.items())


def test_the_media_types_are_modelpacks(written: Path, tiny_bundle: Path) -> None:
    """As docs/spec.md and schema/config-schema.json of the specification say."""
    _, manifest = read(written)
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    types = {layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"] for layer in manifest["layers"]}
    assert types["onnx/text.fp32.onnx"] == "application/vnd.cncf.model.weight.v1.raw"
    assert types[MANIFEST] == types["tokenizer/tokenizer.json"] == "application/vnd.cncf.model.weight.config.v1.raw"
    config = json.loads(blob(written, manifest["config"]["digest"]).read_bytes())
    assert set(config) == {"descriptor", "config", "modelfs"}
    assert set(config["descriptor"]) <= {"family", "name", "version", "title", "licenses"}
    assert config["descriptor"]["version"] == open_bundle(tiny_bundle).id
    assert config["descriptor"]["licenses"] == ["MIT"]
    assert config["config"]["capabilities"]["inputTypes"] == ["audio", "image", "text"]
    assert config["modelfs"] == {"type": "layers", "diffIds": [layer["digest"] for layer in manifest["layers"]]}


def test_it_comes_back_as_the_same_bundle(written: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = read_layout(written, tmp_path / "back")
    assert bundle.id == open_bundle(tiny_bundle).id
    assert contents(tmp_path / "back") == contents(tiny_bundle)
    read_layout(written, tmp_path / "back")
    (tmp_path / "back" / "mine").write_text("mine")
    with pytest.raises(BundleError, match="holds more than its bundle"):
        read_layout(written, tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["back"]


def test_a_signature_travels_along(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    public = write_keys(tmp_path / "key.pem")
    sign_bundle(folder, tmp_path / "key.pem")
    write_layout(folder, tmp_path / "layout")
    read_layout(tmp_path / "layout", tmp_path / "back")
    assert open_signed_bundle(tmp_path / "back", public)
    assert (tmp_path / "back" / SIGNATURE).read_bytes() == (folder / SIGNATURE).read_bytes()


def test_equal_bundles_give_equal_layouts_and_archives(written: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "elsewhere"))
    for path in copy.rglob("*"):
        path.touch()
    digest = write_layout(copy, tmp_path / "again", tag="v1")
    assert digest == read(written)[0]["manifests"][0]["digest"]
    assert contents(tmp_path / "again") == contents(written)
    for name, source in (("one.tar", copy), ("two.tar", tiny_bundle)):
        assert write_layout(source, tmp_path / name, tag="v1", as_tar=True) == digest
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as archive:
        archive.extractall(tmp_path / "untarred", filter="data")
    assert contents(tmp_path / "untarred") == contents(written)


def drop_blob(layout: Path) -> None:
    digest = next(x for x in read(layout)[1]["layers"] if "text.fp32" in str(x["annotations"]))["digest"]
    blob(layout, digest).unlink()


def change_blob(layout: Path) -> None:
    digest = next(x for x in read(layout)[1]["layers"] if "text.fp32" in str(x["annotations"]))["digest"]
    blob(layout, digest).write_bytes(blob(layout, digest).read_bytes() + b"junk")


def change_manifest(layout: Path) -> None:
    path = blob(layout, read(layout)[0]["manifests"][0]["digest"])
    path.write_bytes(path.read_bytes() + b" ")


def two_models(layout: Path) -> None:
    index, _ = read(layout)
    index["manifests"] *= 2
    (layout / "index.json").write_text(json.dumps(index))


def swap_layers(layout: Path) -> None:
    """Two graphs under each other's names: every digest of the layout is right, the bundle's are not."""

    def swap(manifest: dict[str, Any]) -> None:
        one, other = [layer for layer in manifest["layers"] if "onnx/text" in str(layer["annotations"])]
        one["annotations"], other["annotations"] = other["annotations"], one["annotations"]

    rewrite(layout, swap)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda layout: (layout / "oci-layout").unlink(), "is no OCI image layout"),
        (lambda layout: (layout / "index.json").write_text("{"), "is damaged"),
        (lambda layout: (layout / "index.json").write_text("[]"), "is damaged"),
        (drop_blob, "lacks the blob"),
        (change_blob, "digest differs"),
        (change_manifest, "digest differs"),
        (two_models, "holds 2 models"),
        (swap_layers, "was changed"),
        (lambda layout: rewrite(layout, lambda m: m.update(artifactType="application/x")), "no ModelPack model"),
        (lambda layout: rewrite(layout, lambda m: m["layers"].clear()), "has no layer with bundle.json"),
        (lambda layout: rewrite(layout, lambda m: m["layers"][0].update(digest="sha256:../../x")), "is damaged"),
        (lambda layout: rewrite(layout, lambda m: m["layers"][0].update(digest=3)), "is damaged"),
        (lambda layout: rewrite(layout, lambda m: m.update(layers=None)), "is damaged"),
    ],
)
def test_a_damaged_layout_gives_no_bundle(
    damage: Callable[[Path], object], words: str, layout: Path, tmp_path: Path
) -> None:
    damage(layout)
    with pytest.raises(BundleError, match=words):
        read_layout(layout, tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["layout"]


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside", "..\\outside"])  # noqa: S108
def test_a_file_that_leaves_the_folder_is_never_written(name: str, layout: Path, tmp_path: Path) -> None:
    content = json.dumps({"files": {name: {"size_bytes": 1, "sha256": "0" * 64}}}).encode()
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    blob(layout, digest).write_bytes(content)

    def forge(manifest: dict[str, Any]) -> None:
        manifest["layers"][0] |= {"digest": digest, "size": len(content)}
        manifest["layers"][1]["annotations"]["org.cncf.model.filepath"] = name

    rewrite(layout, forge)
    with pytest.raises(BundleError, match="leaves its folder"):
        read_layout(layout, tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["layout"]


def test_places_and_tags_are_judged_first(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BundleError, match="exists"):
        write_layout(tiny_bundle, tmp_path / "file")
    for tag in ("-x", "a b", "x" * 129):
        with pytest.raises(InputError, match="is no tag"):
            write_layout(tiny_bundle, tmp_path / "layout", tag=tag)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
