"""`mechm train fusion`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mechm.cli.options.renamed import RenamedOptions
from mechm.cli.train.options import loop_options
from mechm.cli.train.recordings import RecordingOptions, recording_options

if TYPE_CHECKING:
    from mechm.training.loop import LoopConfig

_folder = click.Path(path_type=Path, exists=True, file_okay=False)
_file = click.Path(path_type=Path)


@click.command(cls=RenamedOptions, renamed={"--report": "--score"})
@loop_options
@click.option("--preset", type=click.Choice(["small", "tiny", "llama2-7b"]), default="small", show_default=True)
@click.option("--train", "train_file", type=_file, required=True, metavar="FILE", help="ECF, or a table of MELD.")
@click.option("--dev", "dev_file", type=_file, required=True, metavar="FILE", help="Selects the weights that are kept.")
@click.option("--score", "reports", type=_file, multiple=True, metavar="FILE", help="Score at the end, for the card.")
@recording_options
@click.option("--goemotions", type=_folder, metavar="DIR", help="Warm up the text encoder on GoEmotions (train.tsv).")
@click.option("--comments", type=click.IntRange(min=1), metavar="N", help="Most comments of GoEmotions. Default: all.")
@click.option("--reccon", type=_folder, metavar="DIR", help="Add RECCON's DailyDialog dialogues, train split.")
@click.option(
    "--speech",
    type=_folder,
    metavar="DIR",
    help="Fit the voice head on recordings named as EmoDB's (03a01Fa.wav ...) or listed in a labels.csv.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder for the weights.")
@click.option("--warmup-epochs", type=click.IntRange(min=0), default=1, show_default=True, help="Epochs on GoEmotions.")
@click.option(
    "--pair-epochs",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="Epochs on --train, RECCON and SEMAINE together.",
)
@click.option("--epochs", type=click.IntRange(min=1), default=4, show_default=True, help="Epochs on --train alone.")
@click.option("--text-lr", type=click.FloatRange(min=0, min_open=True), default=6e-4, show_default=True)
@click.option("--fusion-lr", type=click.FloatRange(min=0, min_open=True), default=5e-4, show_default=True)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=1400, show_default=True, help="Padded tokens per batch."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: torch's own choice.")
def fusion(
    preset: str,
    train_file: Path,
    dev_file: Path,
    reports: tuple[Path, ...],
    goemotions: Path | None,
    comments: int | None,
    reccon: Path | None,
    speech: Path | None,
    out: Path,
    warmup_epochs: int,
    pair_epochs: int,
    epochs: int,
    text_lr: float,
    fusion_lr: float,
    max_tokens: int,
    seed: int,
    threads: int | None,
    loop: LoopConfig,
    recordings: RecordingOptions,
) -> None:
    """Train the text encoder, the fusion and both heads; keep the weights that score best on --dev.

    \b
    mechm train fusion --train ecf/train.txt --dev ecf/dev.txt --out runs/closed
    mechm train fusion --train ecf/train.txt --dev ecf/dev.txt --score ecf/test.txt \\
        --goemotions goemotions --reccon reccon --speech emodb --out runs/open
    mechm train fusion --train ecf/train.txt --dev ecf/dev.txt --clips MELD.Raw --clip-names ecf/ecf_vs_meld.txt \\
        --out runs/clips
    torchrun --nproc-per-node 2 --no-python mechm train fusion --train ecf/train.txt ...
    """
    from mechm.cli.train.console import ConsoleReporter
    from mechm.training.fusion_from_files import FusionRunConfig, train_fusion_from_files

    config = FusionRunConfig(
        recordings.sources(train_file, dev_file, goemotions=goemotions, reccon=reccon),
        out,
        preset,
        reports,
        recordings.config(speech),
        comments,
        warmup_epochs,
        pair_epochs,
        epochs,
        text_lr,
        fusion_lr,
        max_tokens,
        seed,
        threads,
        loop,
    )
    train_fusion_from_files(config, ConsoleReporter())
