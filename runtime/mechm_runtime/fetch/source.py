"""Sources of bundles as users name them, and the stores that hold their files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from mechm_runtime.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES
from mechm_runtime.bundle.open import file_sha256
from mechm_runtime.errors import BundleError, InputError
from mechm_runtime.fetch import http as web
from mechm_runtime.fetch.archive import ArchiveStore
from mechm_runtime.fetch.download import Download, download
from mechm_runtime.fetch.index import NAME, OTHER_WAYS, find_named
from mechm_runtime.fetch.oci_model import LAYOUT_FILE, ModelStore
from mechm_runtime.fetch.registry import SCHEME, is_reference, read_reference, registry_store
from mechm_runtime.fetch.remote import WebStore
from mechm_runtime.fetch.store import FolderStore, Store
from mechm_runtime.system.progress import Progress

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip", ".whl")
PRESETS = ("small", "tiny")
"""Names that are never taken for a folder here, since hints and guides say them."""
DIFFERENT = "another sha256 than asked for: refused"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a bundle comes from.

    name: in the list of bundles, empty where the source was not named so. sha256: what the source must have, None for
    whatever it has. size_bytes: None where nobody said it.
    """

    place: str
    name: str = ""
    sha256: str | None = None
    size_bytes: int | None = None

    @property
    def archive_key(self) -> str:
        """The name of its archive in the downloads' folder."""
        return self._archive(0).key

    @property
    def is_web_archive(self) -> bool:
        """Whether it is an archive on a server."""
        return _is_url(self.place) and urlsplit(self.place).path.lower().endswith(ARCHIVES)

    def download_archive(self, max_bytes: int, on_progress: Progress) -> Path:
        """Download the archive, see `download`."""
        return download(self._archive(max_bytes), count_bytes("downloading", self.size_bytes or 0, on_progress))

    def _archive(self, max_bytes: int) -> Download:
        open_it = partial(web.open_url, self.place)
        return Download(self.place, open_it, self.size_bytes, self.sha256, max_bytes)


def read_source(source: str, sha256: str | None = None) -> Source:
    """A source from what the user gave: a name, an address, an OCI reference, or a path.

    Raises: InputError: it is none of these, or the hash is not the list's. BundleError: the list cannot be read.
    """
    if _is_url(source):
        web.check_url(source)
        return Source(source, sha256=sha256)
    is_path = source not in PRESETS and Path(source).exists()
    if source.startswith(SCHEME) or (not is_path and is_reference(source)):
        return Source(str(read_reference(source)), sha256=sha256)
    if is_path:
        return Source(source, sha256=sha256)
    if not NAME.fullmatch(source):
        raise InputError(f"{web.shown(source)} is no file, address, reference or name of a bundle", hint=OTHER_WAYS)
    listed = find_named(source)
    if sha256 not in (None, listed.sha256):
        raise InputError(f"the list of bundles has another sha256 for {source}", hint="leave --sha256 out")
    found = Source(listed.url, source, listed.sha256, listed.size_bytes)
    return found if found.is_web_archive else Source(listed.url, source, listed.sha256)


def open_source(source: Source, max_bytes: int, on_progress: Progress) -> Store:
    """A store with the bundle's files; an archive on a server is downloaded first.

    Raises: BundleError: it is no bundle, has another hash, or cannot be read.
    """
    if source.is_web_archive:
        return _opened(ArchiveStore(source.download_archive(max_bytes, on_progress)), None)
    if _is_url(source.place):
        return _opened(WebStore(_without_manifest(source.place)), source.sha256)
    path = Path(source.place)
    if path.is_dir():
        return _opened(FolderStore(path), source.sha256)
    if path.is_file():
        if source.sha256 not in (None, file_sha256(path)):
            raise BundleError(f"{path.name} has {DIFFERENT}")
        return _opened(ArchiveStore(path), None)
    if is_reference(source.place.removeprefix(SCHEME)) or source.place.startswith(SCHEME):
        return registry_store(read_reference(source.place), source.sha256)
    raise BundleError(f"{source.place} is neither a file nor a folder", hint=OTHER_WAYS)


def _opened(store: Store, sha256: str | None) -> Store:
    """The store itself where it holds a bundle, and the layers of its model where it is an OCI layout."""
    content = store.read(MANIFEST, MAX_MANIFEST_BYTES)
    if content is not None:
        if sha256 not in (None, hashlib.sha256(content).hexdigest()):
            raise BundleError(f"{MANIFEST} of {store.place} has {DIFFERENT}")
        return store
    if store.read(LAYOUT_FILE, MAX_MANIFEST_BYTES) is not None:
        return ModelStore.in_layout(store, sha256)
    raise BundleError(
        f"{store.place} holds neither {MANIFEST} nor an OCI layout",
        hint=f"give the folder that holds {MANIFEST}, or an archive: {', '.join(ARCHIVES)}",
    )


def count_bytes(stage: str, total: int, on_progress: Progress) -> Callable[[int], None]:
    """A function that adds up bytes and reports their sum as a stage's progress."""
    done = 0

    def on_bytes(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        on_progress(stage, done, total)

    return on_bytes


def _without_manifest(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(path=parts.path.removesuffix(f"/{MANIFEST}")).geturl()


def _is_url(source: str) -> bool:
    return source.startswith(("https://", "http://"))
