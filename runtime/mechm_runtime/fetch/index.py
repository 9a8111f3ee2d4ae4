"""Names of bundles: a list in JSON that says where each lies and which sha256 it has.

    {"small": {"url": "mechm-bundle-small.tar", "sha256": "...", "size_bytes": 93000000, "description": "..."}}

url: an address, an OCI reference, or relative to the list's own address. sha256, size_bytes: of the archive; where
`url` is no archive, sha256 is that of `bundle.json` or of the model's OCI manifest, and size_bytes of the whole. The
list is that of this version's release, or what `MECHM_BUNDLE_INDEX` names: an address or a file.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from mechm_runtime.bundle.from_json import read_dataclass
from mechm_runtime.errors import BundleError, InputError
from mechm_runtime.fetch import http as web
from mechm_runtime.fetch.store import read_limited

INDEX = "MECHM_BUNDLE_INDEX"
"""The variable that names another list."""
RELEASES = "https://github.com/mechm/mechm/releases/download/v{version}/bundles.json"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
MAX_INDEX_BYTES = 1 << 20
OTHER_WAYS = (
    "mechm bundle fetch also takes an address, oci://HOST/REPOSITORY:TAG, or a file or folder of a bundle that was "
    "made elsewhere; pip install takes its wheel; with mechm[export]: mechm export bundle --preset small --out DIR; "
    f"{INDEX} names another list"
)


@dataclass(frozen=True, slots=True)
class Listed:
    """A bundle in the list; `url` is whole, or a file's path."""

    url: str
    sha256: str
    size_bytes: int
    description: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError("sha256 is not 64 hexadecimal digits")
        if self.size_bytes <= 0:
            raise ValueError("size_bytes is not positive")


def index_place() -> str:
    """The address or file of the list."""
    try:
        release = version("mechm")
    except PackageNotFoundError:
        release = "0"
    return os.environ.get(INDEX) or RELEASES.format(version=release)


def find_named(name: str) -> Listed:
    """The bundle of a name.

    Raises: BundleError: the list cannot be read, or is damaged. InputError: it has no such name.
    """
    place = index_place()
    is_url = place.startswith(("https://", "http://"))
    label = web.shown(place) if is_url else place
    try:
        bundles = json.loads(_read(place, is_url=is_url))
        known = sorted(bundles)
        if name not in bundles:
            raise InputError(
                f"the list of bundles has no {name}", hint=f"it has {', '.join(known)[:300] or 'none'}; {OTHER_WAYS}"
            )
        listed = read_dataclass(Listed, bundles[name])
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"the list of bundles ({label}) is damaged: {type(error).__name__}", hint=OTHER_WAYS) from (
            error
        )
    if "://" in listed.url and urlsplit(listed.url).scheme not in ("https", "http", "oci"):
        raise BundleError(f"the list of bundles ({label}) names no address for {name}", hint=OTHER_WAYS)
    where = urljoin(place, listed.url) if is_url else listed.url
    if not is_url and "://" not in listed.url:
        where = str(Path(place).parent / listed.url)
    return Listed(where, listed.sha256, listed.size_bytes, listed.description)


def _read(place: str, *, is_url: bool) -> bytes:
    try:
        if is_url:
            return web.read_url(place, MAX_INDEX_BYTES, partial(web.open_url, place))
        with Path(place).open("rb") as file:
            return read_limited(file, MAX_INDEX_BYTES, place)
    except web.ServerError as error:
        raise BundleError(f"the list of bundles cannot be read: {error}", hint=OTHER_WAYS) from error
    except OSError as error:
        raise BundleError(
            f"the list of bundles cannot be read: {place}: {error.strerror or error}", hint=OTHER_WAYS
        ) from error
