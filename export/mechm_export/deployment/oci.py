"""Converting a bundle to an OCI image layout of the CNCF ModelPack specification, and back.

`oras cp --from-oci-layout`, `skopeo copy oci:…` or `modctl` copy a layout to a registry. Every file of the bundle is a
layer of its own, neither archived nor compressed (the `.raw` media types), so a layer's digest is the file's sha256 in
`bundle.json`, and files that bundles share are stored and sent once. Runtimes that mount images as volumes, and support
only tar layers, cannot mount it. The layout holds no dates: equal bundles give equal layouts.

Formats: OCI image specification 1.1 (image-layout, index, manifest), CNCF ModelPack model-spec v1.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from pathlib import Path
from typing import Any

from mechm_export.deployment.contents import CHUNK_BYTES, Contents
from mechm_runtime.bundle.manifest import MANIFEST, SIGNATURE, Bundle, read_manifest
from mechm_runtime.bundle.open import file_sha256, inside, open_bundle
from mechm_runtime.bundle.staging import check_new, check_target, staging_folder
from mechm_runtime.errors import BundleError, InputError
from mechm_runtime.fetch.oci_model import (
    ARTIFACT,
    DOWNLOAD_AGAIN,
    FILEPATH,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    INDEX_FILE,
    LAYOUT_FILE,
    MAX_JSON_BYTES,
    Layers,
    blob_name,
    only_model,
    read_layers,
)
from mechm_runtime.fetch.store import read_limited
from mechm_runtime.system.atomic_write import put_in_place
from mechm_runtime.system.progress import Progress

CONFIG = "application/vnd.cncf.model.config.v1+json"
WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG = "application/vnd.cncf.model.weight.config.v1.raw"

TITLE = "org.opencontainers.image.title"
"""Annotation with the file name that `oras pull` gives to a layer."""
REFERENCE = "org.opencontainers.image.ref.name"

WEIGHT_SUFFIXES = (".onnx", ".safetensors")
INPUT_TYPES = {"text": "text", "audio": "audio", "face": "image", "scene": "image"}
"""Modality -> ModelPack's name of its input type."""
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
"""OCI distribution specification 1.1, tags."""


def write_layout(
    folder: Path, out: Path, *, tag: str | None = None, as_tar: bool = False, on_progress: Progress | None = None
) -> str:
    """Write a bundle's layout: a folder, or one tar archive of it.

    tag: the manifest's tag in the layout; None for the bundle's id.
    Returns: the digest of the manifest.
    Raises: InputError: the tag is not valid. BundleError: damaged, or `out` exists or cannot be written.
    """
    out = out.absolute()
    check_new(out)
    tag = tag or open_bundle(folder, check_hashes=False).id
    if not TAG.fullmatch(tag):
        raise InputError(f"{tag!r} is no tag", hint="letters, digits, _ . and -, at most 128: --tag")
    bundle = open_bundle(folder, on_progress=on_progress)
    with staging_folder(out) as staging:
        layout = staging / "layout"
        digest = _write_files(layout, Contents(bundle, "copying", on_progress), tag)
        if as_tar:
            archive = staging / "layout.tar"
            _archive(layout, archive)
            put_in_place(archive, out)
        else:
            put_in_place(layout, out)
    return digest


def read_layout(layout: Path, out: Path, *, on_progress: Progress | None = None) -> Bundle:
    """Extract the bundle from a layout's folder.

    Every digest is checked, and then the bundle as on every opening. Names of files come from the bundle's own
    manifest; other files of the layout are ignored.
    Raises: BundleError: it is not a layout, holds no bundle or several, or is damaged; or `out` is not a bundle.
    """
    out = out.absolute()
    check_target(out)
    layers = _layers(layout)
    with staging_folder(out) as staging:
        _extract(layout, layers, MANIFEST, staging)
        manifest = read_manifest(staging)
        try:
            listed = {str(name): int(facts["size_bytes"]) for name, facts in manifest["files"].items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{MANIFEST} in {layout} is damaged", hint=DOWNLOAD_AGAIN) from error
        done, total = 0, sum(listed.values())
        for name, size in {**({SIGNATURE: 0} if SIGNATURE in layers else {}), **listed}.items():
            _extract(layout, layers, name, staging)
            done += size
            if on_progress is not None:
                on_progress("copying", done, total)
        open_bundle(staging, on_progress=on_progress)
        put_in_place(staging, out)
    return open_bundle(out, check_hashes=False)


def model_config(bundle: Bundle, digests: list[str]) -> dict[str, Any]:
    """The ModelPack config of a bundle, without a date.

    digests: of the layers, in order.
    """
    precisions = sorted({part.default for part in bundle.parts.values()})
    licences = {str(licence).partition(" (")[0] for licence in bundle.manifest.get("licences", {}).values()}
    return {
        "descriptor": {
            "family": "mechm",
            "name": f"mechm-{bundle.preset}",
            "version": bundle.id,
            "title": "Emotions and their causes in conversations",
            "licenses": sorted(licences),
        },
        "config": {
            "architecture": "mechm",
            "format": "onnx",
            "precision": "+".join(precisions),
            "capabilities": {
                "inputTypes": sorted({INPUT_TYPES[modality] for modality in bundle.modalities}),
                "outputTypes": ["other"],
            },
        },
        "modelfs": {"type": "layers", "diffIds": digests},
    }


def _write_files(layout: Path, contents: Contents, tag: str) -> str:
    layers = []
    for name in contents.names:
        digest = contents.sha256(name)
        contents.copy(name, _blob(layout, digest))
        media_type = WEIGHT if name.endswith(WEIGHT_SUFFIXES) else WEIGHT_CONFIG
        layers.append(
            {**_descriptor(media_type, digest, contents.size_bytes(name)), "annotations": {FILEPATH: name, TITLE: name}}
        )
    config = _json(model_config(contents.bundle, [str(layer["digest"]) for layer in layers]))
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": IMAGE_MANIFEST,
            "artifactType": ARTIFACT,
            "config": _descriptor(CONFIG, _write_blob(layout, config), len(config)),
            "layers": layers,
        }
    )
    described = _descriptor(IMAGE_MANIFEST, _write_blob(layout, manifest), len(manifest))
    index = {
        "schemaVersion": 2,
        "mediaType": IMAGE_INDEX,
        "manifests": [{**described, "artifactType": ARTIFACT, "annotations": {REFERENCE: tag}}],
    }
    (layout / INDEX_FILE).write_bytes(_json(index))
    (layout / LAYOUT_FILE).write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    return str(described["digest"])


def _descriptor(media_type: str, sha256: str, size_bytes: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{sha256}", "size": size_bytes}


def _write_blob(layout: Path, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    _blob(layout, digest).write_bytes(content)
    return digest


def _blob(layout: Path, sha256: str) -> Path:
    return layout / blob_name(sha256)


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _archive(layout: Path, target: Path) -> None:
    """Write a tar archive whose entries have no date and no owner, always in the same order."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(path for path in layout.rglob("*") if path.is_file()):
            entry = tarfile.TarInfo(path.relative_to(layout).as_posix())
            entry.size, entry.mode = path.stat().st_size, 0o644
            with path.open("rb") as file:
                archive.addfile(entry, file)


def _layers(layout: Path) -> Layers:
    """Read the only model in a layout."""
    if not (layout / LAYOUT_FILE).is_file():
        raise BundleError(
            f"{layout} is no OCI image layout", hint="give the folder that holds oci-layout; untar an archive"
        )
    digest = only_model(_read_limited(layout, layout / INDEX_FILE), str(layout))
    return read_layers(_read_limited(layout, _blob(layout, digest)), digest, str(layout))


def _read_limited(layout: Path, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return read_limited(file, MAX_JSON_BYTES, path.name)
    except OSError as error:
        raise BundleError(f"{layout} is damaged: {path.name}: {error.strerror}", hint=DOWNLOAD_AGAIN) from error


def _extract(layout: Path, layers: Layers, name: str, staging: Path) -> None:
    if name not in layers:
        raise BundleError(f"{layout} has no layer with {name}", hint=DOWNLOAD_AGAIN)
    digest, size = layers[name]
    blob, target = _blob(layout, digest), inside(staging, name)
    if not blob.is_file():
        raise BundleError(f"{layout} lacks the blob of {name}", hint=DOWNLOAD_AGAIN)
    target.parent.mkdir(parents=True, exist_ok=True)
    read = 0
    with blob.open("rb") as source, target.open("wb") as file:
        while read <= size and (chunk := source.read(CHUNK_BYTES)):
            read += file.write(chunk)
    if read != size or file_sha256(target) != digest:
        raise BundleError(f"the layer of {name} in {layout} was changed: its digest differs", hint=DOWNLOAD_AGAIN)
