"""Options that several commands of `mechm train` share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

_OPTIONS = (
    click.option(
        "--accumulate",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Batches per step in each process; their gradients are averaged.",
    ),
    click.option(
        "--save-every",
        "save_every_s",
        type=click.FloatRange(min=0),
        default=300.0,
        show_default=True,
        metavar="SECONDS",
        help="Seconds between checkpoints in OUT/.checkpoint; one is also written after each epoch.",
    ),
    click.option("--resume", is_flag=True, help="Continue the training in --out; give the other options as before."),
    click.option("--tensorboard", is_flag=True, help="Write curves into OUT/tensorboard."),
    click.option("--wandb", "wandb_project", metavar="PROJECT", help="Send curves to this Weights & Biases project."),
)


_folder = click.Path(path_type=Path, exists=True, file_okay=False)

_ADAPTER_OPTIONS = (
    click.option("--preset", type=click.Choice(["small", "tiny", "llama2-7b"]), default="small", show_default=True),
    click.option("--adapter", type=_folder, required=True, metavar="DIR", help="Adapter written by `mechm train llm`."),
    click.option(
        "--fusion",
        "fusion_folder",
        type=_folder,
        metavar="DIR",
        help="Weights written by `mechm train fusion`. Default: those shipped with the preset.",
    ),
    click.option("--base", type=_folder, metavar="DIR", help="The adapter's Llama. Default: the preset's."),
)


def adapter_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add `preset`, `adapter`, `fusion_folder` and `base`: a trained Llama and a trained fusion."""
    for option in reversed(_ADAPTER_OPTIONS):
        command = option(command)
    return command


def loop_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the loop's options to a command, which gets them as one argument `loop`, a `LoopConfig`."""

    @functools.wraps(command)
    def with_loop(
        *,
        accumulate: int,
        save_every_s: float,
        resume: bool,
        tensorboard: bool,
        wandb_project: str | None,
        **arguments: Any,
    ) -> None:
        from mechm.training.loop import LoopConfig
        from mechm.training.tracking import TrackingConfig, check_trackers

        tracking = TrackingConfig(tensorboard, wandb_project)
        check_trackers(tracking)  # before anything is read
        command(loop=LoopConfig(accumulate, save_every_s, resume, tracking), **arguments)

    for option in reversed(_OPTIONS):
        with_loop = option(with_loop)
    return with_loop
