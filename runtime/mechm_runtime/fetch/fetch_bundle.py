"""Fetch a bundle into a folder: whole and checked, or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechm_runtime.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES, SIGNATURE, Bundle, read_manifest
from mechm_runtime.bundle.open import inside, open_bundle
from mechm_runtime.bundle.signature import SIGNATURE_BYTES, open_complete_bundle, open_signed_bundle
from mechm_runtime.bundle.staging import check_target, staging_folder
from mechm_runtime.errors import BundleError
from mechm_runtime.fetch.download import check_space, downloads_folder
from mechm_runtime.fetch.source import Source, count_bytes, open_source, read_source
from mechm_runtime.fetch.store import GET_AGAIN, Store, Wanted
from mechm_runtime.system.atomic_write import put_in_place, write_atomically
from mechm_runtime.system.cache_dir import cache_dir
from mechm_runtime.system.progress import Progress, no_progress

MAX_FILES = 10_000
MAX_BYTES = 256 << 30
"""Largest bundle that is fetched: a Llama of 70 billion weights in 16 bits has 140 GB."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A bundle that lies where it was to be; `is_new` is False where it was there before."""

    bundle: Bundle
    is_new: bool


def fetch_bundle(
    source: str,
    out: Path | None = None,
    *,
    sha256: str | None = None,
    public_key: Path | None = None,
    force: bool = False,
    on_progress: Progress = no_progress,
) -> Fetched:
    """Fetch a bundle, check every file of it, and put it in place.

    source: a name in the list of bundles (`index`), the address of a bundle's folder or archive, an OCI reference, or
        the path of a folder, an archive or an OCI layout.
    out: the bundle's folder; None for `bundles/NAME` in the cache folder, NAME being that of the list, or the bundle's
        preset. `small` is where the default bundle lies.
    sha256: 64 hexadecimal digits: of the archive, of the model's manifest in a layout or registry, or else of
        `bundle.json`. public_key: PEM of the key that must have signed it. force: replace another bundle.
    Raises: InputError: the source is none. BundleError: it cannot be fetched, is changed or unsafe, or another bundle
        is in the way. MissingExtraError: signatures need the extra `sign`.
    """
    where = read_source(source, sha256)
    if where.name and out is None:
        out = _cached(where.name)
    if where.is_web_archive and out is not None and (there := _fetched_before(where, out, public_key, on_progress)):
        return Fetched(there, is_new=False)
    store = open_source(where, MAX_BYTES, on_progress)
    content = store.read(MANIFEST, MAX_MANIFEST_BYTES)
    if content is None:
        raise BundleError(f"{store.place} has no {MANIFEST}", hint=GET_AGAIN)
    signature = store.read(SIGNATURE, SIGNATURE_BYTES)
    if public_key is not None and signature is None:
        raise BundleError(f"the bundle of {store.place} is not signed", hint="leave --public-key out, or sign it there")
    manifest = _parse(content, store.place)
    out = (out or _cached(_preset(manifest))).absolute()
    if there := _same_bundle(out, content, public_key, on_progress):
        return Fetched(there, is_new=False)
    _check_replacing(out, manifest, force=force)
    with staging_folder(out) as staging:
        _fill(staging, store, content, signature, manifest, on_progress)
        checked = _checked(staging, public_key, on_progress)
        put_in_place(staging, out)
    _clean_up(where, checked)
    return Fetched(open_bundle(out, check_hashes=False), is_new=True)


def _fill(
    staging: Path,
    store: Store,
    content: bytes,
    signature: bytes | None,
    manifest: Mapping[str, Any],
    on_progress: Progress,
) -> None:
    """Write the bundle's files into an empty folder."""
    files = _files(manifest, staging, store.place)
    total = sum(one.size_bytes for one in files)
    check_space(staging, total)
    (staging / MANIFEST).write_bytes(content)
    if signature is not None:
        (staging / SIGNATURE).write_bytes(signature)
    store.copy(files, count_bytes("fetching", total, on_progress))


def _files(manifest: Mapping[str, Any], folder: Path, place: str) -> list[Wanted]:
    """The listed files, with their names and sizes checked.

    Raises: BundleError.
    """
    listed = manifest.get("files")
    if not isinstance(listed, dict) or len(listed) > MAX_FILES:
        raise BundleError(f"{MANIFEST} of {place} lists no files, or more than {MAX_FILES:,}", hint=GET_AGAIN)
    files = []
    for name, facts in listed.items():
        size, digest = (facts.get("size_bytes"), facts.get("sha256")) if isinstance(facts, dict) else (None, None)
        if type(size) is not int or size < 0 or not (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)):
            raise BundleError(f"{MANIFEST} of {place} is damaged: a file without size or sha256", hint=GET_AGAIN)
        if name in (MANIFEST, SIGNATURE):
            raise BundleError(f"{MANIFEST} of {place} lists {name} itself", hint=GET_AGAIN)
        files.append(Wanted(name, inside(folder, name), size, digest))
    if (total := sum(one.size_bytes for one in files)) > MAX_BYTES:
        raise BundleError(f"the bundle of {place} has {total / 1e9:,.0f} GB: refused", hint=GET_AGAIN)
    return files


def _parse(content: bytes, place: str) -> dict[str, Any]:
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST} of {place} is damaged: {type(error).__name__}", hint=GET_AGAIN) from error
    if not isinstance(manifest, dict):
        raise BundleError(f"{MANIFEST} of {place} is not a JSON object", hint=GET_AGAIN)
    return manifest


def _cached(name: str) -> Path:
    return cache_dir() / "bundles" / name


def _preset(manifest: Mapping[str, Any]) -> str:
    """The bundle's preset, which becomes a folder's name.

    Raises: BundleError: it is no name.
    """
    preset = manifest.get("preset")
    if not (isinstance(preset, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", preset)):
        raise BundleError(f"{MANIFEST} names no preset", hint=GET_AGAIN)
    return preset


def _checked(folder: Path, public_key: Path | None, on_progress: Progress) -> Bundle:
    if public_key is not None:
        return open_signed_bundle(folder, public_key, on_progress=on_progress)
    return open_complete_bundle(folder, on_progress=on_progress)


def _same_bundle(out: Path, content: bytes, public_key: Path | None, on_progress: Progress) -> Bundle | None:
    """The bundle that lies in `out`, if it is the one of this manifest and whole; a damaged one is fetched again."""
    with suppress(BundleError, OSError):
        if (out / MANIFEST).read_bytes() == content:
            return _checked(out, public_key, on_progress)
    return None


def _check_replacing(out: Path, manifest: Mapping[str, Any], *, force: bool) -> None:
    """Refuse to delete what is not a bundle, and another bundle unless that is asked for.

    Raises: BundleError.
    """
    check_target(out)
    if force or not (out / MANIFEST).exists():
        return
    here = str(read_manifest(out).get("id"))
    if here != str(manifest.get("id")):
        raise BundleError(
            f"{out} holds another bundle ({here[:80]})", hint="--force replaces it; or --out DIR for another folder"
        )


def _note(sha256: str) -> Path:
    """The file that says which bundle an archive held, so that a bundle that is here is not downloaded again."""
    return downloads_folder() / f"{sha256}.id"


def _fetched_before(source: Source, out: Path, public_key: Path | None, on_progress: Progress) -> Bundle | None:
    if source.sha256 is None:
        return None
    with suppress(BundleError, OSError, ValueError):
        known = _note(source.sha256).read_text(encoding="ascii")
        if known == str(read_manifest(out).get("id")):
            return _checked(out, public_key, on_progress)
    return None


def _clean_up(source: Source, bundle: Bundle) -> None:
    """Delete a downloaded archive, and note what was in it."""
    if not source.is_web_archive:
        return
    with suppress(OSError):
        (downloads_folder() / source.archive_key).unlink(missing_ok=True)
        if source.sha256 is not None:
            write_atomically(_note(source.sha256), bundle.id)
