"""Logs training curves to TensorBoard and Weights & Biases through accelerate's trackers, in the main process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from mechm_runtime.errors import InputError, MissingExtraError

TENSORBOARD_FOLDER = "tensorboard"


@dataclass(frozen=True, slots=True)
class TrackingConfig:
    """Destinations of training curves.

    tensorboard: write event files into `OUT/tensorboard`. wandb_project: project of Weights & Biases to log a run to.
    """

    tensorboard: bool = False
    wandb_project: str | None = None


def check_trackers(config: TrackingConfig) -> None:
    """Raises: MissingExtraError, InputError: a requested tracker is not installed."""
    if config.tensorboard and find_spec("tensorboard") is None:
        raise MissingExtraError("tensorboard", extra="train")
    if config.wandb_project is not None and find_spec("wandb") is None:
        raise InputError("wandb is not installed", hint="pip install wandb")


class Curves:
    """Sends numbers by step to every tracker; there may be none."""

    def __init__(self, trackers: list[GeneralTracker]) -> None:
        self._trackers = trackers

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log values at `step`, counted from 1 over the whole training."""
        for tracker in self._trackers:
            tracker.log(dict(values), step=step)


@contextmanager
def tracking(config: TrackingConfig, out: Path, settings: Mapping[str, Any], first_step: int) -> Iterator[Curves]:
    """Open the trackers, and close them at the end, errors included.

    settings: shown with the run by Weights & Biases. first_step: points from here on, left by a killed training, are
        replaced.
    """
    check_trackers(config)
    trackers: list[GeneralTracker] = []
    if config.tensorboard:
        trackers.append(TensorBoardTracker(TENSORBOARD_FOLDER, str(out), purge_step=first_step))
    if config.wandb_project is not None:
        trackers.append(WandBTracker(config.wandb_project, dir=str(out), config=dict(settings)))
    for tracker in trackers:
        tracker.start()
    try:
        yield Curves(trackers)
    finally:
        for tracker in trackers:
            tracker.finish()
