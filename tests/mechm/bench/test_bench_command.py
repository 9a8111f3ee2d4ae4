"""`mechm bench` from end to end: tables, JSON, files, and what it refuses before it measures anything."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from mechm.cli import main

SVG = "{http://www.w3.org/2000/svg}"


def bench(*arguments: str | Path) -> int:
    try:
        main(["bench", *map(str, arguments)])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture(scope="module")
def results(
    tiny_bundle: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Everything but the scenarios that take a minute, on a bundle of random weights and the sample's words."""
    out = tmp_path_factory.mktemp("bench") / "made" / "results"
    arguments = [
        repository / "sample" / "conversation.json",
        "--bundle",
        tiny_bundle,
        "--utterances",
        "2",
        "--out",
        out,
    ]
    arguments += ["--baseline", "glue", "--gold", repository / "sample" / "conversation.json", "--threads", "1"]
    for scenario in ("single-stream", "stages", "offline", "server", "start"):
        arguments += ["--scenario", scenario]
    arguments += ["--repeats", "4", "--rounds", "2", "--starts", "1", "--queries", "4", "--duration", "0.2"]
    assert bench(*arguments) == 0
    (path,) = out.glob("*.json")
    return out, json.loads(path.read_text())


def test_every_scenario_leaves_its_results(results: tuple[Path, dict[str, Any]], tiny_bundle: Path) -> None:
    _, found = results
    assert found["preset"] == "tiny"
    assert found["n_threads"] == 1
    assert found["machine"]["versions"]["onnxruntime"]
    systems = {one["system"]: one for one in found["single_stream"]["systems"]}
    assert set(systems) == {"mechm, no Llama", "onnxruntime glue, no Llama"}
    assert systems["mechm, no Llama"]["latency"]["n"] == 4
    assert systems["onnxruntime glue, no Llama"]["latency"]["n"] == 2
    (stages,) = found["stages"]
    assert {part["part"] for part in stages["parts"]} == {"text", "fusion"}
    for part in stages["parts"]:
        assert part["gops"] > 0
        assert part["uncounted"] == []
        assert part["share"] == pytest.approx(part["ideal_ms"] / part["ms"], rel=0.05, abs=2e-3)
    assert stages["overhead"] >= 1
    assert found["limits"]["int8_gops"] > 0
    assert found["offline"][0]["n_queries"] == 4
    assert found["server"][0]["trials"]
    assert [one["conversation"] for one in found["start"]] == ["1 utterance, text", "2 utterances, text"]
    assert all(one["peak_mb"] > 20 and one["first_s"] > 0 for one in found["start"])
    assert found["scaling"] == []


def test_accuracy_stands_beside_every_speed(results: tuple[Path, dict[str, Any]]) -> None:
    _, found = results
    assert found["accuracy"]["gold"] == "conversation.json"
    assert {one["system"] for one in found["accuracy"]["systems"]} == {
        one["system"] for one in found["single_stream"]["systems"]
    }
    for one in found["accuracy"]["systems"]:
        assert one["short"]["n_utterances"] == 14
        assert 0 <= one["short"]["emotion_accuracy"] <= 1


def test_the_record_names_no_folder_of_this_machine(results: tuple[Path, dict[str, Any]], tiny_bundle: Path) -> None:
    out, found = results
    assert str(tiny_bundle.parent) not in json.dumps(found)
    for path in out.iterdir():
        assert str(Path.home()) not in path.read_text()


def test_pictures_say_what_they_show(results: tuple[Path, dict[str, Any]]) -> None:
    out, _ = results
    pictures = sorted(out.glob("*.svg"))
    assert [path.stem.rpartition("-")[2] for path in pictures] == ["latency", "roofline"]
    for path in pictures:
        figure = ElementTree.parse(path).getroot()  # noqa: S314 (our own file)
        described = figure.findtext(f"{SVG}desc") or ""
        assert "mechm, no Llama" in described
        width = float(figure.get("width") or 0)
        for mark in figure.iter(f"{SVG}use"):
            assert 0 < float(mark.get("x") or 0) < width
    latency = ElementTree.parse(pictures[0]).getroot()  # noqa: S314
    queries = [group for group in latency.iter(f"{SVG}g") if (group.get("id") or "").startswith("queries-")]
    assert sum(len(list(group.iter(f"{SVG}use"))) for group in queries) == 4 + 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--transcript", "a.srt"], "goes with an INPUT"),
        (["--limit", "3"], "counts conversations of --gold"),
        (["--llm-url", "http://127.0.0.1:1", "--llm", "none"], "is for --llm vllm"),
        (["--baseline", "theirs"], "Invalid value"),
        (["--scenario", "fast"], "Invalid value"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], message: str, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--bundle", tiny_bundle, *arguments) == 2
    assert message in capsys.readouterr().err


def test_what_could_not_be_written_is_refused_before_the_work(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert bench("--bundle", tiny_bundle, "--out", tmp_path / "file") == 2
    assert "is a file" in capsys.readouterr().err


def test_a_light_install_is_told_what_a_rival_needs(fresh_python: Any, tiny_bundle: Path) -> None:
    code = f"from mechm.cli import main; main(['bench', '--bundle', {str(tiny_bundle)!r}, '--baseline', 'original'])"
    done = fresh_python(code, without=("torch", "transformers", "peft"))
    assert done.returncode == 2, done.stderr
    assert "pip install 'mechm[train]'" in done.stderr


def test_a_light_install_measures_without_torch_and_onnx(
    fresh_python: Any, tiny_bundle: Path, repository: Path
) -> None:
    words = [
        "bench",
        str(repository / "sample" / "conversation.json"),
        "--bundle",
        str(tiny_bundle),
        "--utterances",
        "1",
    ]
    words += ["--scenario", "single-stream", "--scenario", "stages", "--repeats", "1"]
    done = fresh_python(f"from mechm.cli import main; main({words!r})", without=("torch", "transformers", "onnx"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["single_stream"]["systems"]
    assert found["limits"] is None
    assert "pip install 'mechm[bench]'" in found["notes"][0]
    assert found["stages"][0]["parts"][0]["share"] is None


def test_without_a_checkout_an_input_must_be_named(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules["mechm.bench.workload"], "SAMPLE", tmp_path)
    assert bench("--bundle", tiny_bundle) == 2
    assert "hint: name one: mechm bench" in capsys.readouterr().err
