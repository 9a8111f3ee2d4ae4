"""The CNCF ModelPack format of a bundle in OCI layouts and registries: media types, and reading the model's manifest.

Formats: OCI image specification 1.1 (image-layout, index, manifest), CNCF ModelPack model-spec v1. Writing a layout is
`mechm bundle to-oci`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from mechm_runtime.errors import BundleError
from mechm_runtime.fetch.store import OnBytes, Store, Wanted

ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMAGE_INDEX = "application/vnd.oci.image.index.v1+json"
LAYOUT_FILE = "oci-layout"
INDEX_FILE = "index.json"
FILEPATH = "org.cncf.model.filepath"
"""Annotation of a layer: the file's path in the bundle."""
MAX_JSON_BYTES = 4 << 20
DOWNLOAD_AGAIN = "get the layout again"

Layers = Mapping[str, tuple[str, int]]
"""A file's path in the bundle -> sha256 (hexadecimal) and size of its layer."""


def only_model(index: bytes, place: str) -> str:
    """The sha256 of the only model's manifest in an index (`index.json`, or one that a registry answers).

    place: for messages. Raises: BundleError: it holds no model or several, or is damaged.
    """
    with _explained(place):
        models = [one for one in json.loads(index)["manifests"] if one.get("artifactType", ARTIFACT) == ARTIFACT]
        if len(models) != 1:
            raise BundleError(f"{place} holds {len(models)} models, not one", hint="copy one into a layout of its own")
        return hexadecimal(models[0]["digest"])


def read_layers(content: bytes, sha256: str, place: str) -> Layers:
    """The layers of a model's manifest.

    sha256: what its content must have. place: for messages.
    Raises: BundleError: it is another one, of no model, or damaged.
    """
    if hashlib.sha256(content).hexdigest() != sha256:
        raise BundleError(f"the manifest in {place} was changed: its digest differs", hint=DOWNLOAD_AGAIN)
    with _explained(place):
        manifest = json.loads(content)
        if manifest["artifactType"] != ARTIFACT:
            raise BundleError(f"{place} holds no ModelPack model, but {str(manifest['artifactType'])[:80]!r}")
        return {
            str(layer["annotations"][FILEPATH]): (hexadecimal(layer["digest"]), int(layer["size"]))
            for layer in manifest["layers"]
            if str(layer["mediaType"]).endswith(".raw")
        }


def hexadecimal(digest: str) -> str:
    """The hexadecimal digits of a digest, checked since they become part of a path.

    Raises: ValueError: it is no sha256.
    """
    found = re.fullmatch(r"sha256:([0-9a-f]{64})", digest)
    if found is None:
        raise ValueError(f"digest {digest[:80]!r}")
    return found[1]


def blob_name(sha256: str) -> str:
    """A blob's path in a layout."""
    return f"blobs/sha256/{sha256}"


class ModelStore:
    """The files of a bundle whose layers lie in another store, under the names of an OCI layout.

    blobs: a layout, or a registry. content: the model's manifest, whose sha256 must be the given one.
    Raises: BundleError: as `read_layers`.
    """

    def __init__(self, blobs: Store, content: bytes, sha256: str) -> None:
        self._blobs, self.place = blobs, blobs.place
        self._layers = read_layers(content, sha256, blobs.place)

    @classmethod
    def in_layout(cls, layout: Store, sha256: str | None) -> ModelStore:
        """The only model of a layout. sha256: what its manifest must have; None for what the layout says."""
        index = layout.read(INDEX_FILE, MAX_JSON_BYTES)
        if index is None:
            raise BundleError(f"{layout.place} has no {INDEX_FILE}", hint=DOWNLOAD_AGAIN)
        digest = only_model(index, layout.place)
        content = layout.read(blob_name(digest), MAX_JSON_BYTES)
        if content is None:
            raise BundleError(f"{layout.place} lacks the model's manifest", hint=DOWNLOAD_AGAIN)
        if sha256 not in (None, digest):
            raise BundleError(f"the manifest in {layout.place} has another sha256 than asked for: refused")
        return cls(layout, content, digest)

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """See `Store`."""
        if name not in self._layers:
            return None
        sha256, size_bytes = self._layers[name]
        content = self._blobs.read(blob_name(sha256), max_bytes)
        if content is None:
            raise BundleError(f"{self.place} lacks the blob of {name}", hint=DOWNLOAD_AGAIN)
        if len(content) != size_bytes or hashlib.sha256(content).hexdigest() != sha256:
            raise BundleError(
                f"the layer of {name} in {self.place} was changed: its digest differs", hint=DOWNLOAD_AGAIN
            )
        return content

    def copy(self, files: Sequence[Wanted], on_bytes: OnBytes) -> None:
        """See `Store`."""
        for one in files:
            if one.name not in self._layers:
                raise BundleError(f"{self.place} has no layer with {one.name}", hint=DOWNLOAD_AGAIN)
            if self._layers[one.name] != (one.sha256, one.size_bytes):
                raise BundleError(f"the layer of {one.name} in {self.place} is another file", hint=DOWNLOAD_AGAIN)
        self._blobs.copy([replace(one, name=blob_name(one.sha256)) for one in files], on_bytes)


@contextmanager
def _explained(place: str) -> Iterator[None]:
    try:
        yield
    except (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise BundleError(f"{place} is damaged: {reason}", hint=DOWNLOAD_AGAIN) from error
