"""A small bundle, and servers on this machine: ranges, cut connections, redirects, a registry."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mechm_runtime.bundle.manifest import MANIFEST, manifest_id
from mechm_runtime.fetch import http as web


@dataclass
class Site:
    """A server's behaviour, which tests change, and the requests that it has seen.

    files: path -> content. redirects: path -> address. cut_after: bytes of a body after which the connection breaks,
    once per request, for `cuts` requests. claimed: path -> Content-Length in place of the true one. statuses: path ->
    statuses that are answered first. piece: bytes that are sent at once.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    cut_after: int = 0
    cuts: int = 0
    claimed: dict[str, int] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    ranges: bool = True
    etags: bool = True
    bearer: str = ""
    realm: str = ""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    bytes_sent: int = 0
    piece: int = 1 << 20
    url: str = ""

    def add_folder(self, folder: Path, prefix: str = "") -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                self.files[f"{prefix}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()

    def add_registry(self, layout: Path, repository: str, tag: str) -> str:
        """Serve an OCI layout by the paths of the distribution API; returns the manifest's sha256."""
        index = json.loads((layout / "index.json").read_bytes())
        digest = index["manifests"][0]["digest"]
        base = f"/v2/{repository}"
        for path in (layout / "blobs" / "sha256").iterdir():
            self.files[f"{base}/blobs/sha256:{path.name}"] = path.read_bytes()
        manifest = (layout / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()
        self.files[f"{base}/manifests/{tag}"] = self.files[f"{base}/manifests/{digest}"] = manifest
        return str(digest.removeprefix("sha256:"))

    def asked(self, path: str) -> list[dict[str, str]]:
        """The headers of the requests for a path."""
        return [headers for one, headers in self.requests if one == path]


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            site.requests.append((path, {name.lower(): value for name, value in self.headers.items()}))
            if site.statuses.get(path):
                return self.empty(site.statuses[path].pop(0))
            if path == "/token":
                return self.body(json.dumps({"token": site.bearer}).encode(), path)
            if site.bearer and self.headers.get("Authorization") != f"Bearer {site.bearer}":
                challenge = (
                    f'Bearer realm="{site.realm or site.url + "/token"}",service="here",scope="repository:m:pull"'
                )
                return self.empty(401, {"WWW-Authenticate": challenge})
            if path in site.redirects:
                return self.empty(302, {"Location": site.redirects[path]})
            if path not in site.files:
                return self.empty(404)
            return self.body(site.files[path], path)

        def empty(self, status: int, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": "0"}.items():
                self.send_header(name, value)
            self.end_headers()

        def body(self, content: bytes, path: str) -> None:
            tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(found[1]) if found and site.ranges else 0
            if self.headers.get("If-Range", tag) != tag:
                start = 0
            if start and start >= len(content):
                return self.empty(416, {"Content-Range": f"bytes */{len(content)}"})
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if site.etags:
                self.send_header("ETag", tag)
            self.send_header("Content-Length", str(site.claimed.get(path, len(content) - start)))
            self.end_headers()
            rest = content[start:]
            if site.cuts and len(rest) > site.cut_after and not path.endswith(MANIFEST):
                site.cuts -= 1
                rest = rest[: site.cut_after]
                self.close_connection = True
            if path in site.claimed:
                self.close_connection = True
            site.bytes_sent += len(rest)
            for position in range(0, len(rest), site.piece):
                self.wfile.write(rest[position : position + site.piece])
                if site.piece < len(rest):
                    time.sleep(0.01)
            return None

    return Handler


@contextmanager
def serve(site: Site) -> Iterator[str]:
    """Run a server for a site; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(site))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site.url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def site() -> Iterator[Site]:
    """A server on this machine."""
    made = Site()
    with serve(made):
        yield made


@pytest.fixture
def other_site() -> Iterator[Site]:
    """Another one, on another port."""
    made = Site()
    with serve(made):
        yield made


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, no pauses between attempts, and no settings of this machine."""
    monkeypatch.setenv("MECHM_CACHE", str(tmp_path / "cache"))
    for name in ("MECHM_BUNDLE", "MECHM_BUNDLE_INDEX", "MECHM_PUBLIC_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(web, "PAUSE_S", 0.0)
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def made_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of a real bundle over files of a few kilobytes, which are never loaded here."""
    return shrink(tiny_bundle, tmp_path_factory.mktemp("made") / "bundle")


def shrink(real: Path, folder: Path) -> Path:
    manifest = json.loads((real / MANIFEST).read_bytes())
    for name in manifest["files"]:
        content = hashlib.sha512(name.encode()).digest() * 100
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    manifest["id"] = manifest_id(manifest["preset"], manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def bundle(made_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the made bundle, to change."""
    return Path(shutil.copytree(made_bundle, tmp_path / "bundle"))
