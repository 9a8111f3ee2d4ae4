"""Lines that a log is useful by: rare, and with what somebody waiting wants to know."""

from __future__ import annotations

import pytest

from mechm.cli.options.progress import StepLines, duration, training_progress
from mechm.training.loop import StepReport


def step(number: int, loss: float = 1.0, n_steps: int = 400) -> StepReport:
    return StepReport(number, n_steps, loss, 4e-4, 0.5, 20)


def test_a_line_about_every_minute_and_one_at_the_end() -> None:
    lines: list[str] = []
    now = 0.0
    say = StepLines(lines.append, every_s=60, clock=lambda: now)
    for number in range(1, 401):
        now = 2.0 * number
        say(step(number, loss=3.0 if number <= 30 else 1.0))
    assert len(lines) == 14  # 800 seconds, and the last step
    assert lines[0] == "step 30/400 (7 %): loss 3.000, lr 4.0e-04, 10.0 utterances/s, 12 min left"
    assert lines[1].startswith("step 60/400 (15 %): loss 1.000"), "the mean since the last line"
    assert lines[-1].startswith("step 400/400 (100 %)")
    assert lines[-1].endswith("0 s left")


def test_a_resumed_training_judges_its_speed_by_its_own_steps() -> None:
    lines: list[str] = []
    now = 0.0
    say = StepLines(lines.append, every_s=60, clock=lambda: now)
    for number in range(201, 301):
        now = 1.0 * (number - 200)
        say(step(number))
    assert lines[0].startswith("step 260/400")
    assert lines[0].endswith("2 min left")


@pytest.mark.parametrize(("seconds", "said"), [(0, "0 s"), (89, "89 s"), (600, "10 min"), (11_100, "3 h 05 min")])
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_off_a_terminal_lines_go_to_stderr_and_other_processes_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    for shown in (True, False):
        with training_progress(shown=shown) as (on_step, say):
            on_step(step(400))
            say("target 1: loss 1.0")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert [line.partition(":")[0] for line in printed.err.splitlines()] == ["step 400/400 (100 %)", "target 1"]
