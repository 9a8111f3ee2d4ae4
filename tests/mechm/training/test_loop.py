"""The loop: a training that was stopped ends as one that was not, in one process or two, and a full disk loses none."""

from __future__ import annotations

import importlib.util
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mechm.training import checkpoint
from mechm.training.checkpoint import FOLDER, STATE_FILE, discard_checkpoint, has_checkpoint
from mechm.training.interrupt import REPEATED_SIGNAL_S, Interruption
from mechm.training.loop import LoopConfig, StepReport, batch_random
from mechm_runtime.errors import WeightsError

SCRIPT = Path(__file__).parent / "tiny_training.py"
EVERY_STEP = LoopConfig(save_every_s=0)


def load_script() -> ModuleType:
    """The script as a module; pytest's importlib mode has no package for tests to import from."""
    spec = importlib.util.spec_from_file_location("tiny_training", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny = load_script()


def state(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / FOLDER / STATE_FILE)


def files(out: Path) -> dict[str, bytes]:
    """Everything a training wrote but the card, which says how long it took, and its own state."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.name != "card.json"}


def assert_same(one: Path, other: Path) -> None:
    assert files(one) == files(other)
    assert "model.safetensors" in files(one)
    a, b = state(one), state(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.fixture(scope="module")
def whole(tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[StepReport]]:
    """A training that nothing interrupted, and its steps."""
    out = tmp_path_factory.mktemp("whole") / "out"
    steps: list[StepReport] = []
    tiny.train(out, tokenizer_file, LoopConfig(), steps.append)
    return out, steps


def run(arguments: dict[str, object], *, processes: int = 1) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error"]
    if processes > 1:
        # The launcher looks for a free port by itself; its own warnings are none of ours.
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [str(SCRIPT), json.dumps(arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def steps_of(log: Path) -> list[tuple[float, ...]]:
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [tuple(line) for line in lines if line != "wrote"]


@pytest.mark.parametrize("save_every_s", [0.0, 300.0])
def test_a_killed_training_ends_as_one_that_was_not(
    whole: tuple[Path, list[StepReport]], tokenizer_file: Path, tmp_path: Path, save_every_s: float
) -> None:
    uninterrupted, steps = whole
    out, log = tmp_path / "out", tmp_path / "log"
    kill_at = len(steps) - 3
    arguments = {"out": str(out), "tokenizer": str(tokenizer_file), "log": str(log), "save_every_s": save_every_s}
    killed = run({**arguments, "kill_at": kill_at})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(steps_of(tmp_path / "log.0")) == kill_at
    again: list[StepReport] = []
    tiny.train(out, tokenizer_file, LoopConfig(resume=True), again.append)
    assert again == steps[-len(again) :]
    # Killed in the step's callback, before that step was saved: it alone is learnt again.
    assert len(again) == 4 if save_every_s == 0 else len(again) > 4
    assert_same(out, uninterrupted)


@pytest.mark.parametrize(
    ("number", "raised", "code"),
    [(signal.SIGTERM, SystemExit, 143), (signal.SIGINT, KeyboardInterrupt, None)],
)
def test_a_training_that_is_asked_to_stop_saves_first(
    whole: tuple[Path, list[StepReport]],
    tokenizer_file: Path,
    tmp_path: Path,
    number: signal.Signals,
    raised: type[BaseException],
    code: int | None,
) -> None:
    uninterrupted, steps = whole
    out = tmp_path / "out"
    done: list[StepReport] = []

    def ask(report: StepReport) -> None:
        done.append(report)
        if report.step == 5:
            signal.raise_signal(number)

    before = signal.getsignal(number)
    with pytest.raises(raised) as left:
        tiny.train(out, tokenizer_file, LoopConfig(), ask)
    assert signal.getsignal(number) is before
    assert getattr(left.value, "code", None) == code
    tiny.train(out, tokenizer_file, LoopConfig(resume=True), done.append)
    assert done == steps
    assert_same(out, uninterrupted)


def test_a_second_request_is_not_deferred_but_an_echo_is() -> None:
    now = 0.0
    interruption = Interruption(clock=lambda: now)
    interruption.handle(signal.SIGTERM, None)
    interruption.handle(signal.SIGINT, None)  # torchrun passes on what the terminal sent to its workers too
    assert interruption.signal is signal.SIGTERM
    now = REPEATED_SIGNAL_S + 0.1
    with pytest.raises(SystemExit):
        interruption.handle(signal.SIGTERM, None)


def test_a_training_at_its_end_can_be_resumed_and_does_nothing(
    whole: tuple[Path, list[StepReport]], tokenizer_file: Path
) -> None:
    out, _ = whole
    before, steps = files(out), []
    best = tiny.train(out, tokenizer_file, LoopConfig(resume=True), steps.append)
    assert steps == []
    assert best == json.loads((out / "card.json").read_text(encoding="utf-8"))["dev"]["weighted_f1"]
    assert files(out) == before


def test_another_training_is_not_gone_on_with(whole: tuple[Path, list[StepReport]], tokenizer_file: Path) -> None:
    out, _ = whole
    resume = LoopConfig(resume=True)
    with pytest.raises(WeightsError, match=r"training\.fusion_lr was 0\.001 and now is 0\.002") as refused:
        tiny.train(out, tokenizer_file, resume, config=replace(tiny.CONFIG, fusion_lr=2e-3))
    assert "seed" not in str(refused.value)
    with pytest.raises(WeightsError, match=r"corpora\.target was 9 conversations, \w+ and now is 8 conversations"):
        tiny.train(out, tokenizer_file, resume, n_conversations=8)
    with pytest.raises(WeightsError, match="batches a step was 1 and now is 2"):
        tiny.train(out, tokenizer_file, replace(resume, accumulate=2))


def test_base_weights_are_told_apart() -> None:
    from mechm.model.build import build_network
    from mechm.model.config import TINY

    prints = [checkpoint.fingerprint(build_network(TINY, None, seed=seed)) for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


def test_what_is_there_is_neither_overwritten_nor_resumed_without_a_checkpoint(
    tokenizer_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "card.json").write_text("{}", encoding="utf-8")
    with pytest.raises(WeightsError, match="exists"):
        tiny.train(tmp_path, tokenizer_file, LoopConfig())
    with pytest.raises(WeightsError, match="no training to go on with"):
        tiny.train(tmp_path, tokenizer_file, LoopConfig(resume=True))
    assert [path.name for path in tmp_path.iterdir()] == ["card.json"]


def test_a_first_checkpoint_that_was_never_finished_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / f"{STATE_FILE}.part").write_bytes(b"half a checkpoint")
    checkpoint.check_unused(tmp_path)
    checkpoint.check_unused(tmp_path / "absent")
    (tmp_path / FOLDER / STATE_FILE).touch()
    with pytest.raises(WeightsError, match="exists"):
        checkpoint.check_unused(tmp_path)


def test_a_broken_checkpoint_is_an_error_and_not_a_new_start(tokenizer_file: Path, tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / STATE_FILE).write_bytes(b"half a checkpoint")
    with pytest.raises(WeightsError, match="cannot be read"):
        tiny.train(tmp_path, tokenizer_file, LoopConfig(resume=True))


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@contextmanager
def failing_writer() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        yield


@contextmanager
def small_files() -> Iterator[None]:
    """The system lets no file grow beyond 50 kB: writing fails for real, in the middle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("full_disk", [failing_writer, small_files])
def test_a_full_disk_keeps_the_last_checkpoint(
    whole: tuple[Path, list[StepReport]],
    tokenizer_file: Path,
    tmp_path: Path,
    full_disk: Callable[[], AbstractContextManager[None]],
) -> None:
    uninterrupted, steps = whole
    out = tmp_path / "out"
    with ExitStack() as disk:

        def fill(report: StepReport) -> None:
            if report.step == 4:
                disk.enter_context(full_disk())

        with pytest.raises(WeightsError, match="cannot be written") as caught:
            tiny.train(out, tokenizer_file, EVERY_STEP, fill)
    assert "--resume" in caught.value.hint
    assert [path.name for path in (out / FOLDER).iterdir()] == [STATE_FILE]
    again: list[StepReport] = []
    tiny.train(out, tokenizer_file, LoopConfig(resume=True), again.append)
    assert again == steps[3:]
    assert_same(out, uninterrupted)


def test_two_processes_learn_what_one_does_from_both_their_batches(tokenizer_file: Path, tmp_path: Path) -> None:
    arguments = {"tokenizer": str(tokenizer_file), "save_every_s": 0}
    two = run({**arguments, "out": str(tmp_path / "two"), "log": str(tmp_path / "two.log")}, processes=2)
    assert two.returncode == 0, two.stderr
    steps: list[StepReport] = []
    tiny.train(tmp_path / "one", tokenizer_file, LoopConfig(accumulate=2), steps.append)
    # Epochs of 4, 13 and 13 batches: in the last step of two of them there is none for the second process.
    assert len(steps) == 2 + 7 + 7
    # Loss, gradient norm and utterances of every step, in both processes.
    expected = np.array([(s.loss, s.gradient_norm, s.utterances) for s in steps])
    for rank in range(2):
        assert np.abs(np.array(steps_of(tmp_path / f"two.log.{rank}")) - expected).max() < 1e-5
    a, b = state(tmp_path / "one"), state(tmp_path / "two")
    assert a.keys() == b.keys()
    assert max((a[name].float() - b[name].float()).abs().max().item() for name in a) < 1e-5
    scores = [json.loads((tmp_path / name / "card.json").read_text(encoding="utf-8"))["dev"] for name in ("one", "two")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    assert '"wrote"' in (tmp_path / "two.log.0").read_text(encoding="utf-8")
    assert '"wrote"' not in (tmp_path / "two.log.1").read_text(encoding="utf-8")
    # What two processes left, one goes on with, as long as a step holds as many batches.
    tiny.train(tmp_path / "two", tokenizer_file, LoopConfig(accumulate=2, resume=True))


def test_processes_that_differ_do_not_train_together(tokenizer_file: Path, tmp_path: Path) -> None:
    arguments = {"tokenizer": str(tokenizer_file), "out": str(tmp_path / "out"), "log": str(tmp_path / "log")}
    ran = run({**arguments, "seed_by_rank": True}, processes=2)
    assert ran.returncode != 0
    assert "process 1 differs from the main one: base weights was" in ran.stderr
    assert not (tmp_path / "out").exists()


def test_accumulated_batches_make_one_step(
    whole: tuple[Path, list[StepReport]], tokenizer_file: Path, tmp_path: Path
) -> None:
    _, single = whole
    steps: list[StepReport] = []
    tiny.train(tmp_path, tokenizer_file, LoopConfig(accumulate=3), steps.append)
    assert len(single) > len(steps) > 1
    assert sum(s.utterances for s in steps) == sum(s.utterances for s in single)
    # Before the first step the weights are the same, so its loss is the mean of the first three batches' losses there.
    assert steps[0].utterances == sum(s.utterances for s in single[:3])


def test_a_batchs_chance_is_its_own() -> None:
    draws = [(batch_random(seed, n).random(), torch.rand(1).item()) for seed, n in [(0, 3), (0, 3), (0, 4), (1, 3)]]
    assert draws[0] == draws[1]
    assert len({draw for pair in draws[1:] for draw in pair}) == 6


def test_a_discarded_checkpoint_is_gone(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / STATE_FILE).touch()
    assert has_checkpoint(tmp_path)
    discard_checkpoint(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="accumulate"):
        LoopConfig(accumulate=0)
    with pytest.raises(ValueError, match="save_every_s"):
        LoopConfig(save_every_s=-1)
