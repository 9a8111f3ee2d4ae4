"""`mechm train fusion` from the command line: card, curves, stopping and going on, one process and two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mechm.cli import cli
from mechm.cli.options import progress
from mechm.training.loop import StepReport
from mechm_runtime.errors import WeightsError

SAMPLE = """1 6
 (5,5),(6,5)
1 | Ann | neutral | Hello there. |
2 | Bob | neutral | Hi. |
3 | Ann | neutral | I have news. |
4 | Bob | anger | Not again! |
5 | Ann | joy | We won, it is wonderful! |
6 | Bob | joy | That is wonderful! |
2 2
 (2,1)
1 | Ann | neutral | He left. |
2 | Bob | sadness | Oh no, I will miss him. |
"""

pytestmark = pytest.mark.usefixtures("small_weights")  # for its tokenizer; `tiny` itself is random


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "ecf.txt"
    file.write_text(SAMPLE, encoding="utf-8")
    return file


def arguments(corpus: Path, out: Path, *more: str) -> list[str]:
    files = ["--train", str(corpus), "--dev", str(corpus), "--out", str(out)]
    return ["train", "fusion", "--preset", "tiny", *files, "--epochs", "4", *more]


def run(*given: str) -> Result:
    return CliRunner().invoke(cli, given)


def card(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "card.json").read_text(encoding="utf-8"))
    return found


def test_a_training_leaves_weights_a_card_and_curves_and_no_checkpoint(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = run(*arguments(corpus, out, "--tensorboard"))
    assert ran.exit_code == 0, ran.output
    names = {path.name for path in out.iterdir()}
    assert names == {"model.safetensors", "config.json", "decision.json", "card.json", "tensorboard"}
    written = card(out)
    assert written["run"]["versions"]["accelerate"]
    assert written["run"]["machine"]["processes"] == 1
    assert written["run"]["parameters"]["total"] > written["run"]["parameters"]["trained"] > 0
    assert written["run"]["seconds"] > 0
    assert written["run"]["peak_memory_mb"] > 100
    assert written["training"]["seed"] == 0
    assert written["limits"][0].startswith("No utterance of the target corpus is labelled disgust or fear or surprise")
    assert written["limits"][0] in ran.stderr
    assert "step 4/4 (100 %)" in ran.stderr
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    tags = {"loss", "learning_rate", "gradient_norm", "dev/weighted_f1", "dev/emotion_accuracy"}
    assert tags == set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert str(tmp_path) not in (out / "card.json").read_text(encoding="utf-8")

    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    finished = run(*arguments(corpus, out, "--resume"))
    assert finished.exit_code == 0
    assert "is finished" in finished.output
    refused = run(*arguments(corpus, out))
    assert isinstance(refused.exception, WeightsError)
    assert "exists" in str(refused.exception)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_stopped_training_says_how_to_go_on_and_does(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = progress.training_progress

    @contextmanager
    def stopping(**options: Any) -> Iterator[tuple[Callable[[StepReport], None], Callable[[str], None]]]:
        with shown(**options) as (on_step, say):

            def stop(report: StepReport) -> None:
                on_step(report)
                if report.step == 2:
                    signal.raise_signal(signal.SIGTERM)

            yield stop, say

    out, whole = tmp_path / "out", tmp_path / "whole"
    nothing = run(*arguments(corpus, out, "--resume"))
    assert isinstance(nothing.exception, WeightsError)
    with monkeypatch.context() as patch:
        patch.setattr(progress, "training_progress", stopping)
        stopped = run(*arguments(corpus, out))
    assert stopped.exit_code == 143
    assert "--resume goes on" in stopped.stderr
    refused = run(*arguments(corpus, out))
    assert isinstance(refused.exception, WeightsError)
    assert "--resume" in refused.exception.hint
    differs = run(*arguments(corpus, out, "--resume", "--seed", "1"))
    assert isinstance(differs.exception, WeightsError)
    assert "training.seed was 0 and now is 1" in str(differs.exception)
    assert run(*arguments(corpus, out, "--resume")).exit_code == 0
    assert run(*arguments(corpus, whole)).exit_code == 0
    for name in ("model.safetensors", "decision.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert card(out)["scores"] == card(whole)["scores"]


def test_torchrun_trains_with_two_processes(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    command = [*launcher, sys.executable, "-c", "from mechm.cli import main; main()", *arguments(corpus, out)]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count(f"wrote {out}") == 1
    assert "arning" not in ran.stderr
    assert card(out)["run"]["machine"]["processes"] == 2
    assert not (out / ".checkpoint").exists()


def test_an_absent_tracker_is_an_error_before_anything_is_read(tmp_path: Path) -> None:
    ran = run(*arguments(tmp_path / "missing", tmp_path / "out", "--wandb", "mechm"))
    assert "wandb is not installed" in str(ran.exception)
