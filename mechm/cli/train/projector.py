"""`mechm train projector`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mechm.cli.train.options import adapter_options, loop_options
from mechm.cli.train.recordings import RecordingOptions, recording_options

if TYPE_CHECKING:
    from mechm.training.loop import LoopConfig

_file = click.Path(path_type=Path)
_folder = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command()
@loop_options
@adapter_options
@click.option("--train", "train_file", type=_file, required=True, metavar="FILE", help="ECF, or a table of MELD.")
@click.option("--dev", "dev_file", type=_file, required=True, metavar="FILE", help="Selects the epoch that is kept.")
@recording_options
@click.option("--speech", type=_folder, metavar="DIR", help="Emotional speech, as for mechm train fusion.")
@click.option(
    "--conversations", type=click.IntRange(min=1), metavar="N", help="Train on N conversations, drawn at random."
)
@click.option("--tokens", "n_tokens", type=click.IntRange(min=1), default=2, show_default=True, help="Per utterance.")
@click.option("--epochs", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), default=2e-3, show_default=True)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=1600, show_default=True, help="Padded tokens per batch."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: torch's own choice.")
def projector(
    preset: str,
    adapter: Path,
    fusion_folder: Path | None,
    base: Path | None,
    train_file: Path,
    dev_file: Path,
    speech: Path | None,
    conversations: int | None,
    n_tokens: int,
    epochs: int,
    lr: float,
    max_tokens: int,
    seed: int,
    threads: int | None,
    loop: LoopConfig,
    recordings: RecordingOptions,
) -> None:
    """Train the projector, which turns the fusion's view of voices, faces and frames into soft tokens for the Llama.

    The Llama and the fusion do not change, nor do their answers to text alone. Writes ADAPTER/projector, which mechm
    export bundle includes. Train it again when either has changed.

    \b
    mechm train projector --adapter runs/llm --fusion runs/fusion --train ecf/train.txt --dev ecf/dev.txt \\
        --speech emodb
    """
    from mechm.cli.train.console import ConsoleReporter
    from mechm.training.projector_from_files import ProjectorRunConfig, train_projector_from_files

    config = ProjectorRunConfig(
        adapter,
        recordings.sources(train_file, dev_file),
        preset,
        fusion_folder,
        base,
        recordings.config(speech),
        conversations,
        n_tokens,
        epochs,
        lr,
        max_tokens,
        seed,
        threads,
        loop,
    )
    train_projector_from_files(config, ConsoleReporter())
