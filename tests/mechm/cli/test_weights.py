from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from click.testing import CliRunner
from rich.console import Console

from mechm.cli.weights import PRESET_NAMES, weights
from mechm.weights import PRESETS, Progress, show_progress
from mechm.weights.progress import LineProgress, file_bytes, folder_bytes, format_bytes, watch_bytes
from mechm_runtime.errors import WeightsError


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MECHM_CACHE", str(tmp_path))
    return tmp_path


def run(*arguments: str) -> str:
    result = CliRunner().invoke(weights, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_commands_offer_every_preset() -> None:
    assert set(PRESET_NAMES) == set(PRESETS)


def test_tiny_needs_nothing() -> None:
    assert run("fetch", "--preset", "tiny") == "preset tiny has random weights: nothing to fetch\n"


def test_list_shows_each_part_with_its_licence_and_absence() -> None:
    lines = run("list", "--preset", "small").splitlines()
    rows = {line.split()[0]: line for line in lines[1:] if not line.startswith(" ")}
    assert list(rows) == ["text", "audio", "scene", "expression", "detector", "llm"]
    assert "sentence-transformers/all-mpnet-base-v2" in rows["text"]
    assert "Apache-2.0" in rows["text"]
    assert all(row.rstrip().endswith("no") for row in rows.values())


def test_path_of_an_absent_part_is_an_error_with_the_command() -> None:
    with pytest.raises(WeightsError) as caught:
        run("path", "text")
    assert caught.value.hint == "mechm weights fetch --preset small"


def test_an_unknown_preset_or_source_is_a_usage_error() -> None:
    for arguments in (["fetch", "--preset", "huge"], ["fetch", "--source", "ftp"], ["path"]):
        assert CliRunner().invoke(weights, arguments).exit_code == 2


def test_help_and_list_work_in_a_light_install(fresh_python: Callable[..., CompletedProcess[str]]) -> None:
    heavy = ["torch", "transformers", "safetensors", "huggingface_hub", "h5py", "gguf", "onnx", "onnxruntime"]
    code = "from mechm.cli.weights import weights; weights({arguments!r})"
    for arguments in (["fetch", "--help"], ["list"], ["path", "--help"]):
        done = fresh_python(code.format(arguments=arguments), without=heavy)
        assert done.returncode == 0, done.stderr


def test_a_fetch_in_a_light_install_names_the_extra(fresh_python: Callable[..., CompletedProcess[str]]) -> None:
    code = (
        "from mechm.weights import fetch_weights\n"
        "from mechm_runtime.errors import MissingExtraError\n"
        "try:\n    fetch_weights('small')\n"
        "except MissingExtraError as error:\n    print(error.hint)"
    )
    done = fresh_python(code, without=["torch"])
    assert done.stdout.strip() == "pip install 'mechm[train]'", done.stderr


# --- Progress ---


def report(progress: Progress) -> None:
    progress.note("The hub is far away.")
    progress.start("text", "downloading", 2_000_000)
    progress.advance("text", 1_000_000)
    progress.start("text", "converting", None)
    progress.finish("text", "92 MB")
    progress.finish("audio", "failed")


def test_lines_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    with show_progress(Console(file=out, width=200)) as progress:
        report(progress)
    assert out.getvalue().splitlines() == [
        "The hub is far away.",
        "text: downloading (2 MB)",
        "text: converting",
        "text: 92 MB",
        "audio: failed",
    ]


def test_bars_on_a_terminal_leave_the_results() -> None:
    out = io.StringIO()
    with show_progress(Console(file=out, width=100, force_terminal=True, color_system=None)) as progress:
        report(progress)
    assert "text: 92 MB\n" in out.getvalue()
    assert "\x1b[" in out.getvalue()  # it draws


def test_a_long_download_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechm.weights.progress.LINE_EVERY_S", 0)
    lines: list[str] = []
    progress = LineProgress(lines.append)
    progress.start("text", "downloading", 2_000_000)
    progress.advance("text", 1_000_000)
    assert lines[-1] == "text: 1 MB of 2 MB"


def test_a_growing_folder_is_watched(tmp_path: Path) -> None:
    seen: list[int] = []

    class Recorder(LineProgress):
        def advance(self, part: str, done_bytes: int) -> None:
            seen.append(done_bytes)

    with watch_bytes(Recorder(print), "text", lambda: folder_bytes(tmp_path)):
        (tmp_path / "file").write_bytes(b"x" * 1234)
        time.sleep(0.5)
    assert seen[-1] == 1234


def test_folders_that_vanish_while_they_are_measured_are_skipped(tmp_path: Path) -> None:
    """pip removes its temporary folders while the download is watched."""
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        (folder / "inner").mkdir(parents=True)
        (folder / "unfinished").write_bytes(b"x" * 34)
    sizes = file_bytes(tmp_path)
    first = next(sizes)
    for folder in folders:
        shutil.rmtree(folder)
    assert [first, *sizes] == [34]


@pytest.mark.parametrize(("size", "text"), [(900, "1 kB"), (241_000, "241 kB"), (92e6, "92 MB"), (13.48e9, "13.5 GB")])
def test_sizes_for_people(size: float, text: str) -> None:
    assert format_bytes(int(size)) == text
