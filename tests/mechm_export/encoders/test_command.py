"""`mechm export encoder`: what it prints, what it leaves, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mechm.cli import main

Folders = Callable[[str], Path]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run(option, ...)` -> exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["export", "encoder", *map(str, arguments)])
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


def test_a_table_a_report_and_progress(encoders: Folders, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "made" / "here"
    code, printed, progress = run(
        "--model", encoders("dinov2"), "--precision", "fp32", "--precision", "fp16", "--out", out
    )
    assert code == 0
    assert "DINOv2, image-embedding" in printed
    assert "input pixel_values: float32 (batch, 3, 28, 28)" in printed
    assert "output image_embeds: float32 (batch, 32)" in printed
    assert printed.splitlines()[-1] == f"wrote {out}"
    assert "exporting fp16" in progress.splitlines()
    assert set(json.loads((out / "encoder.json").read_text())["graphs"]) == {"fp32", "fp16"}
    # And what is there is never replaced.
    code, printed, error = run("--model", encoders("dinov2"), "--out", out)
    assert (code, printed) == (2, "")
    assert f"{out} exists" in error
    converted = tmp_path / "converted"
    assert run("--from-onnx", out, "--precision", "fp16", "--out", converted)[0] == 0
    assert {path.name for path in converted.iterdir()} >= {"model_fp16.onnx", "encoder.json"}
    assert not (converted / "model.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "one of --model and --from-onnx"),
        (("--model", "{bert}", "--from-onnx", "{bert}"), "one of --model and --from-onnx"),
        (("--model", "{bert}", "--opset", "17"), "opset 17"),
        (("--model", "{bert}", "--opset", "18", "--precision", "bf16"), "bf16 needs opset 22"),
        (("--model", "{bert}", "--axes", "batch,height"), "no axis height"),
        (("--model", "{bert}", "--task", "audio-embedding"), "no audio-embedding"),
        (("--from-onnx", "{bert}", "--opset", "18"), "--opset is for --model"),
        (("--from-onnx", "{bert}"), "no model.onnx"),
    ],
)
def test_what_cannot_be_asked_for(
    arguments: tuple[str, ...], words: str, encoders: Folders, tmp_path: Path, run: Run
) -> None:
    given = [one.format(bert=encoders("bert")) for one in arguments]
    code, printed, error = run(*given, "--out", tmp_path / "out")
    assert (code, printed) == (2, "")
    assert words in error
    assert not list(tmp_path.iterdir())
