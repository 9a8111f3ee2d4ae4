"""Curves: TensorBoard reads back what was logged, a killed training leaves no loose ends, absent trackers are named."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mechm.training import tracking as module
from mechm.training.distributed import start_processes
from mechm.training.tracking import TrackingConfig, check_trackers, tracking
from mechm_runtime.errors import InputError, MissingExtraError


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_shows_one_course_though_the_training_was_killed(tmp_path: Path) -> None:
    start_processes()
    config = TrackingConfig(tensorboard=True)
    for first, steps in ((1, range(1, 6)), (4, range(4, 9))):  # killed after 5, the checkpoint was of 3
        with tracking(config, tmp_path, {}, first) as curves:
            for step in steps:
                curves.log({"loss": float(10 * first + step)}, step)
    expected = [(1, 11.0), (2, 12.0), (3, 13.0), *((step, 40.0 + step) for step in range(4, 9))]
    assert curve(tmp_path, "loss") == expected


def test_nothing_is_written_where_nothing_is_wanted(tmp_path: Path) -> None:
    with tracking(TrackingConfig(), tmp_path, {}, 1) as curves:
        curves.log({"loss": 1.0}, 1)
    assert list(tmp_path.iterdir()) == []


def test_absent_trackers_are_named_with_the_command_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    check_trackers(TrackingConfig())
    with pytest.raises(MissingExtraError, match="tensorboard") as caught:
        check_trackers(TrackingConfig(tensorboard=True))
    assert "mechm[train]" in caught.value.hint
    with pytest.raises(InputError, match="wandb") as missing:
        check_trackers(TrackingConfig(wandb_project="mechm"))
    assert missing.value.hint == "pip install wandb"


def test_weights_and_biases_gets_project_settings_and_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through accelerate's tracker into a stand-in for the package, which is no dependency."""
    start_processes()
    calls: list[tuple[str, Any]] = []

    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            calls.append(("log", (values, step)))

        def finish(self) -> None:
            calls.append(("finish", None))

    stand_in = ModuleType("wandb")
    stand_in.init = lambda **options: calls.append(("init", options)) or Run()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    monkeypatch.setattr(module, "find_spec", lambda _: True)
    with tracking(TrackingConfig(wandb_project="emotions"), tmp_path, {"seed": 3}, 1) as curves:
        curves.log({"loss": 1.0}, 1)
    assert calls == [
        ("init", {"project": "emotions", "dir": str(tmp_path), "config": {"seed": 3}}),
        ("log", ({"loss": 1.0}, 1)),
        ("finish", None),
    ]
