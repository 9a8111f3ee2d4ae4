"""`mechm export`: what it prints, what it writes, and its exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mechm.cli import main
from mechm_export.bundle.report import BundleReport, print_report
from mechm_export.cli.options import read_check_set
from mechm_export.gate.check_set import shipped_check_set
from mechm_export.gate.comparison import TaskCheck, ValueCheck
from mechm_runtime.bundle.manifest import MANIFEST, manifest_id
from mechm_runtime.bundle.open import open_bundle

COMMAND = [sys.executable, "-W", "error", "-c", "from mechm.cli import main; main()", "export"]


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, standard output, and the lines of standard error."""

    code: int
    out: str
    err: list[str]


Run = Callable[..., Ended]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("bundle", option, ...)` is `mechm export bundle option ...` in this process."""

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["export", *map(str, arguments)])
        printed = capsys.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 1, printed.out, printed.err.splitlines())

    return run


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def assert_error(ended: Ended, code: int, *words: str) -> None:
    """One error line, at most a hint after it, and nothing on standard output."""
    assert ended.code == code, ended
    lines = [line for line in ended.err if line.startswith(("error: ", "hint: "))]
    assert lines == ended.err[-len(lines) :]
    assert [line.partition(":")[0] for line in lines] in (["error"], ["error", "hint"])
    assert ended.out == ""
    for word in words:
        assert word in lines[0]


def test_two_exports_are_one_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    """Byte by byte, id included, though other processes made them, with other threads, times and folders."""
    out = tmp_path / "made" / "here"
    options = ["--preset", "tiny", "--adapter", "none", "--accept-quality-loss"]  # as `tiny_bundle`
    n_threads = "2" if torch.get_num_threads() == 1 else "1"
    done = subprocess.run(
        [*COMMAND, "bundle", *options, "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": n_threads},
    )
    assert done.returncode == 0, done.stderr
    files = {path.relative_to(tiny_bundle): path for path in tiny_bundle.rglob("*") if path.is_file()}
    assert {path.relative_to(out) for path in out.rglob("*") if path.is_file()} == set(files)
    assert [name for name, path in files.items() if path.read_bytes() != (out / name).read_bytes()] == []
    first, second = open_bundle(tiny_bundle), open_bundle(out)
    assert first.id == second.id
    assert done.stdout.splitlines()[-1] == f"wrote {out} ({second.id})"
    for words in ("Parts against torch", "Answers against torch", "what the runtime runs by default", "bundle: "):
        assert words in done.stdout
    steps = done.stderr.splitlines()
    assert steps[0] == "loading weights"
    assert steps[-1] == f"comparing answers on {shipped_check_set().name}"
    assert len(steps) == 14


def test_a_bundle_that_is_what_it_says(tiny_bundle: Path, run: Run) -> None:
    ended = run("check", tiny_bundle)
    assert ended.code == 0
    assert ended.out.splitlines()[-1] == f"{tiny_bundle} is what it says ({open_bundle(tiny_bundle).id})"
    assert "default" in ended.out
    assert ended.err[0] == "checking hashes"


def test_a_changed_byte(folder: Path, run: Run) -> None:
    path = folder / "tokenizer/tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"the", b"teh", 1))
    assert_error(run("check", folder), 2, "tokenizer/tokenizer.json was changed")


def test_other_constants_than_the_weights(folder: Path, run: Run) -> None:
    """Nothing the user could have typed better: exit code 1, as for everything that does not match."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["decision"]["pair_threshold"] = 0.9
    manifest["id"] = manifest_id("tiny", manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert_error(run("check", folder), 1, "decides with other constants")


def test_no_bundle(tmp_path: Path, run: Run) -> None:
    assert_error(run("check", tmp_path / "gone"), 2, "no bundle at")
    assert_error(run("check", tmp_path), 2, "is not a bundle")


def test_a_target_in_use(tmp_path: Path, run: Run) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert_error(run("bundle", "--preset", "tiny", "--out", tmp_path), 2, "other things in it")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_weights_that_are_not_there(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHM_CACHE", str(tmp_path / "cache"))
    assert_error(run("bundle", "--preset", "tiny", "--out", tmp_path / "out"), 2, "weights")
    assert_error(run("bundle", "--preset", "llama2-7b", "--out", tmp_path / "out"), 2, "no trained weights")
    (tmp_path / "trained").mkdir()
    assert not (tmp_path / "out").exists()


def test_trained_weights_that_are_none(tmp_path: Path, run: Run, small_weights: Path) -> None:
    (tmp_path / "trained").mkdir()
    ended = run("bundle", "--preset", "tiny", "--out", tmp_path / "out", "--trained", tmp_path / "trained")
    assert_error(ended, 2, "lack config.json")


@pytest.mark.parametrize(
    "arguments",
    [
        ("bundle",),
        ("bundle", "--out", "x", "--preset", "medium"),
        ("bundle", "--out", "x", "--trained", "/nothing/here"),
        ("bundle", "--out", "x", "--recording", "call.wav"),
        ("check",),
        ("fly",),
    ],
)
def test_usage(arguments: tuple[str, ...], run: Run) -> None:
    ended = run(*arguments)
    assert ended.code == 2
    assert any("Error" in line or "Usage" in line for line in ended.err)


def test_conversations_that_cannot_be_read(tmp_path: Path, tiny_bundle: Path, run: Run) -> None:
    (tmp_path / "bad.json").write_text("{")
    assert_error(run("check", tiny_bundle, "--conversations", tmp_path / "bad.json"), 2, "bad.json")
    assert_error(run("check", tiny_bundle, "--conversations", tmp_path / "gone.json"), 2, "gone.json")


def test_own_conversations_and_recordings_are_judged_on(
    tiny_bundle: Path, tmp_path: Path, repository: Path, run: Run
) -> None:
    sample = repository / "sample" / "conversation.mp4"
    turns = [
        {"utterance_ID": 1, "speaker": "A", "text": "We won!", "emotion": "joy"},
        {"utterance_ID": 2, "speaker": "B", "text": "Really?", "emotion": "surprise"},
    ]
    pairs = [["1_joy", "1_We won!"], ["2_surprise", "1_We won!"]]
    (tmp_path / "own.json").write_text(
        json.dumps([{"conversation_ID": 1, "conversation": turns, "emotion-cause_pairs": pairs}])
    )
    arguments = ("--recording", sample, sample.with_suffix(".srt"))
    ended = run("check", tiny_bundle, "--conversations", tmp_path / "own.json", *arguments)
    assert ended.code == 0, ended
    assert "comparing answers on own.json" in ended.err
    assert "│ own.json, recordings │ default" in " ".join(ended.out.split()), "a row is a line"
    assert read_check_set(None, ()) is None
    shipped = read_check_set(None, ((sample, sample.with_suffix(".srt")),))
    assert shipped is not None
    assert (shipped.name, len(shipped.recorded)) == (shipped_check_set().name, 1)


@pytest.mark.usefixtures("exact_int8")
def test_what_differs_is_shown_before_it_is_an_error(
    tiny_bundle: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mechm_export.gate.comparison import TaskCheck

    monkeypatch.setattr(TaskCheck, "problem", property(lambda check: f"labels differ on {check.split}"))
    ended = run("check", tiny_bundle)
    assert ended.code == 1
    assert ended.err[-1] == f"error: labels differ on {shipped_check_set().name}"
    assert "labels kept" in ended.out
    assert "is what it says" not in ended.out


def test_what_was_left_out_is_printed(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = open_bundle(tiny_bundle)
    text = bundle.parts["text"]
    lacking = replace(bundle, parts={"text": replace(text, files={"fp32": text.files["fp32"]}, default="fp32")})
    report = BundleReport(
        lacking,
        (ValueCheck("text", "fp32", 1.5e-06, 1.0, 5),),
        (TaskCheck("dev", "fp32", 12, 132, 0.9924, 0.95, 0.01, 0.3421, 0.3425, 0.36, 0.6, 866, 900),),
        {("text", "int8"): "17 of 132 labels differ from torch on dev"},
    )
    print_report(report)
    printed = " ".join(capsys.readouterr().out.split())
    assert "text: int8 was left out: 17 of 132 labels differ from torch on dev" in printed
    for words in ("fp32 *", "1.5e-06", "99.24%", "95.00%", "0.3421", "0.3425"):
        assert words in printed


def test_a_light_install_is_told_what_is_missing(
    tmp_path: Path, tiny_bundle: Path, fresh_python: Callable[..., Any]
) -> None:
    for arguments in (["bundle", "--out", str(tmp_path / "out")], ["check", str(tiny_bundle)]):
        done = fresh_python(f"from mechm.cli import main; main({['export', *arguments]!r})", without=["torch"])
        assert done.returncode == 2
        assert done.stderr.splitlines() == ["error: torch is not installed", "hint: pip install 'mechm[export]'"]
