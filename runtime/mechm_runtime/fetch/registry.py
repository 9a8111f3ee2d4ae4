"""Models in OCI registries, read without a login (OCI distribution specification 1.1; tokens as Docker's registries).

`mechm bundle to-oci` and `oras cp` or `skopeo copy` bring a bundle into a registry.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from urllib.parse import urlencode
from urllib.request import parse_http_list, parse_keqv_list

from mechm_runtime.errors import BundleError, InputError
from mechm_runtime.fetch import http as web
from mechm_runtime.fetch.oci_model import IMAGE_INDEX, IMAGE_MANIFEST, MAX_JSON_BYTES, ModelStore, blob_name, only_model
from mechm_runtime.fetch.remote import download_all
from mechm_runtime.fetch.store import OnBytes, Wanted

SCHEME = "oci://"
HINT = "as in oci://registry.example/mechm:v1, or with @sha256: and the digest"
ADDRESSES = {"docker.io": "registry-1.docker.io"}
"""Names of registries -> hosts that answer for them."""
MAX_TOKEN_BYTES = 1 << 20

_REFERENCE = re.compile(
    r"(?P<host>localhost|\[[0-9a-f:]+\]|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*)(?P<port>:\d+)?"
    r"/(?P<repository>[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@sha256:(?P<sha256>[0-9a-f]{64}))?"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """A model in a registry.

    host: with its port. tag: empty where only the digest is named. sha256: of the manifest, None where only the tag is.
    """

    host: str
    repository: str
    tag: str
    sha256: str | None

    @property
    def url(self) -> str:
        """The start of the addresses of the repository's manifests and blobs."""
        bare = re.sub(r":\d+$", "", self.host).strip("[]")
        scheme = "http" if web.is_local(bare) else "https"
        return f"{scheme}://{ADDRESSES.get(self.host, self.host)}/v2/{self.repository}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.host}/{self.repository}{tag}" + (f"@sha256:{self.sha256}" if self.sha256 else "")


def is_reference(source: str) -> bool:
    """Whether a source without `oci://` names a registry: a host with a dot or port, and a tag or digest."""
    found = _REFERENCE.fullmatch(source)
    if found is None:
        return False
    is_host = "." in found["host"] or found["port"] is not None or found["host"] == "localhost"
    return is_host and bool(found["tag"] or found["sha256"])


def read_reference(source: str) -> Reference:
    """A reference, with or without `oci://`. Raises: InputError: it is none, or names neither tag nor digest."""
    found = _REFERENCE.fullmatch(source.removeprefix(SCHEME))
    if found is None:
        raise InputError(f"{web.shown(source)} is no reference to a registry", hint=HINT)
    if not (found["tag"] or found["sha256"]):
        raise InputError(f"{source} names neither a tag nor a digest", hint=HINT)
    return Reference(
        found["host"] + (found["port"] or ""), found["repository"], found["tag"] or "", found["sha256"] or None
    )


def registry_store(reference: Reference, sha256: str | None = None) -> ModelStore:
    """The bundle that a reference names.

    sha256: what the model's manifest must have, in place of the reference's own digest.
    Raises: BundleError: there is no such model, it is no bundle, or the registry refuses.
    """
    registry = _Registry(reference)
    content = registry.manifest(f"sha256:{reference.sha256}" if reference.sha256 else reference.tag)
    found = hashlib.sha256(content).hexdigest()
    if reference.sha256 is not None and found != reference.sha256:
        raise BundleError(f"{reference} answers another manifest than its digest names: refused")
    if _media_type(content) == IMAGE_INDEX:
        found = only_model(content, str(reference))
        content = registry.manifest(f"sha256:{found}")
    elif sha256 not in (None, found):
        raise BundleError(f"the manifest of {reference} has another sha256 than asked for: refused")
    return ModelStore(registry, content, found)


class _Registry:
    """The blobs of a repository, under the names of an OCI layout."""

    def __init__(self, reference: Reference) -> None:
        self._url, self.place = reference.url, str(reference)
        self._authorization = ""

    def manifest(self, name: str) -> bytes:
        """A manifest or index by tag or digest."""
        url = f"{self._url}/manifests/{name}"
        accept = {"Accept": f"{IMAGE_MANIFEST}, {IMAGE_INDEX}"}
        return web.read_url(url, MAX_JSON_BYTES, lambda headers: self._open(url, {**accept, **headers}))

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """See `Store`."""
        url = self._address(name)
        try:
            return web.read_url(url, max_bytes, partial(self._open, url))
        except web.ServerError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    def copy(self, files: Sequence[Wanted], on_bytes: OnBytes) -> None:
        """See `Store`."""
        download_all(
            files, lambda one: (self._address(one.name), partial(self._open, self._address(one.name))), on_bytes
        )

    def _address(self, name: str) -> str:
        return f"{self._url}/blobs/sha256:{name.removeprefix(blob_name(''))}"

    def _open(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        try:
            return web.open_url(url, headers, self._authorization)
        except web.ServerError as error:
            if error.status != HTTPStatus.UNAUTHORIZED or not error.challenge:
                raise
            self._authorization = self._token(error)
        return web.open_url(url, headers, self._authorization)

    def _token(self, refusal: web.ServerError) -> str:
        """Ask for an anonymous token, as the registry's challenge says; tokens of long downloads are renewed so too."""
        kind, _, rest = refusal.challenge.partition(" ")
        fields = parse_keqv_list([one for one in parse_http_list(rest) if "=" in one])
        if kind.lower() != "bearer" or "realm" not in fields:
            raise refusal
        query = urlencode([(name, value) for name, value in fields.items() if name in ("service", "scope")])
        url = f"{fields['realm']}{'&' if '?' in fields['realm'] else '?'}{query}"
        if not web.is_local(web.host_of(self._url)):
            web.check_url(url, came_from=self._url)
        answer = web.read_url(url, MAX_TOKEN_BYTES, partial(web.open_url, url))
        try:
            given = json.loads(answer)
            token = given.get("token") or given["access_token"]
        except (AttributeError, LookupError, ValueError, RecursionError) as error:
            raise BundleError(f"{web.shown(url)} gives no token: {type(error).__name__}") from error
        if not (isinstance(token, str) and token.isascii() and token.isprintable()):
            raise BundleError(f"{web.shown(url)} gives no token that can be sent")
        return f"Bearer {token}"


def _media_type(content: bytes) -> str:
    try:
        return str(json.loads(content).get("mediaType", IMAGE_MANIFEST))
    except (AttributeError, ValueError, RecursionError):
        return ""  # what is wrong with it is said where it is read
