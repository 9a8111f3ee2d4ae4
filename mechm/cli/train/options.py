"""What the commands of `mechm train` have in common: options, and how a training is left."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mechm.training.loop import EpochReport

_OPTIONS = (
    click.option(
        "--accumulate",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Batches a step in each process; their gradients are averaged.",
    ),
    click.option(
        "--save-every",
        "save_every_s",
        type=click.FloatRange(min=0),
        default=300.0,
        show_default=True,
        metavar="SECONDS",
        help="Save the training's state into OUT/.checkpoint this often, and after each epoch.",
    ),
    click.option("--resume", is_flag=True, help="Go on with the training in --out; other options as before."),
    click.option("--tensorboard", is_flag=True, help="Write curves into OUT/tensorboard."),
    click.option("--wandb", "wandb_project", metavar="PROJECT", help="Send curves to this Weights & Biases project."),
)


_folder = click.Path(path_type=Path, exists=True, file_okay=False)

_ADAPTER_OPTIONS = (
    click.option("--preset", type=click.Choice(["small", "tiny", "llama2-7b"]), default="small", show_default=True),
    click.option("--adapter", type=_folder, required=True, metavar="DIR", help="What `mechm train llm` wrote."),
    click.option(
        "--fusion",
        "fusion_folder",
        type=_folder,
        metavar="DIR",
        help="What `mechm train fusion` wrote. Default: the weights shipped with the preset.",
    ),
    click.option("--base", type=_folder, metavar="DIR", help="The adapter's Llama. Default: the preset's."),
)


def adapter_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add `preset`, `adapter`, `fusion_folder` and `base`: what lies between a trained Llama and a trained fusion."""
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


@contextmanager
def training_processes(out: Path) -> Iterator[Accelerator]:
    """Join the training's processes, say how to go on where it is stopped, and leave them together at the end."""
    from mechm.training.checkpoint import has_checkpoint
    from mechm.training.distributed import start_processes

    accelerator = start_processes()
    try:
        yield accelerator
    except (KeyboardInterrupt, SystemExit):
        if accelerator.is_main_process and has_checkpoint(out):
            click.echo("\nstopped, and saved: the same command with --resume goes on", err=True)
        raise
    accelerator.end_training()


def check_out(out: Path, *, resume: bool, accelerator: Accelerator) -> bool:
    """Whether there is something to do, before anything is read for it; says so where a training is finished.

    Every process looks before any of them writes.

    Raises: WeightsError: `out` holds something and is not to be resumed, or holds nothing to resume.
    """
    from mechm.model.build import CARD_FILE
    from mechm.training.checkpoint import check_resumable, check_unused, has_checkpoint

    finished = resume and (out / CARD_FILE).is_file() and not has_checkpoint(out)
    if finished:
        if accelerator.is_main_process:
            click.echo(f"the training in {out} is finished")
    elif resume:
        check_resumable(out)
    else:
        check_unused(out)
    accelerator.wait_for_everyone()
    return not finished


def epoch_line(report: EpochReport) -> str:
    """An epoch on one line."""
    scored = f", dev weighted F1 {report.dev_weighted_f1:.4f}, emotion accuracy {report.dev_emotion_accuracy:.4f}"
    return f"{report.stage} {report.epoch}: loss {report.loss:.3f}, {report.seconds:.0f} s" + (
        scored if report.dev_emotion_accuracy else ""
    )


def score_line(name: str, found: dict[str, Any], what: str) -> str:
    """A split's scores in the card on one line; `what` was scored."""
    return (
        f"{name}: weighted F1 {found['weighted_f1']:.4f}, micro F1 {found['micro_f1']:.4f}, "
        f"emotion accuracy {found['emotion_accuracy']:.4f} ({what})"
    )
