"""`mechm train llm`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mechm.cli.options.renamed import RenamedOptions
from mechm.cli.train.options import loop_options

if TYPE_CHECKING:
    from mechm.training.loop import LoopConfig

_file = click.Path(path_type=Path)
_folder = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command(cls=RenamedOptions, renamed={"--report": "--score"})
@loop_options
@click.option("--preset", type=click.Choice(["small", "llama2-7b"]), default="small", show_default=True)
@click.option(
    "--base",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="Base weights in the Hugging Face layout. Default: the preset's, see mechm weights.",
)
@click.option(
    "--start-from", "start", type=_folder, metavar="DIR", help="Continue training this adapter. Default: a new one."
)
@click.option("--train", "train_file", type=_file, required=True, metavar="FILE", help="ECF conversations to train on.")
@click.option("--dev", "dev_file", type=_file, required=True, metavar="FILE", help="Selects the epoch that is kept.")
@click.option("--score", "reports", type=_file, multiple=True, metavar="FILE", help="Score at the end, for the card.")
@click.option(
    "--goemotions",
    type=_folder,
    metavar="DIR",
    help="Warm up on comments of GoEmotions (train.tsv), balanced over emotions.",
)
@click.option(
    "--comments", type=click.IntRange(min=1), default=4000, show_default=True, help="Most comments of GoEmotions."
)
@click.option("--reccon", type=_folder, metavar="DIR", help="Warm up on RECCON's DailyDialog dialogues, train split.")
@click.option("--warmup-epochs", type=click.IntRange(min=1), default=1, show_default=True, help="Epochs on those two.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder for the adapter.")
@click.option(
    "--epochs", type=click.IntRange(min=1), default=3, show_default=True, help="Epochs on --train, at the end."
)
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), default=5e-4, show_default=True)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=1600, show_default=True, help="Padded tokens per batch."
)
@click.option(
    "--checkpoint-activations",
    is_flag=True,
    help="Recompute activations instead of storing them: less memory, a third more time.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: torch's own choice.")
def llm(
    preset: str,
    base: Path | None,
    start: Path | None,
    train_file: Path,
    dev_file: Path,
    reports: tuple[Path, ...],
    goemotions: Path | None,
    comments: int,
    reccon: Path | None,
    warmup_epochs: int,
    out: Path,
    epochs: int,
    lr: float,
    max_tokens: int,
    checkpoint_activations: bool,
    seed: int,
    threads: int | None,
    loop: LoopConfig,
) -> None:
    """Train the Llama's LoRA adapter on the answers it is scored by; keep the epoch that scores best on --dev.

    \b
    mechm train llm --train ecf/train.txt --dev ecf/dev.txt --score ecf/test.txt --out runs/llm
    mechm train llm --train ecf/train.txt --dev ecf/dev.txt --goemotions goemotions --reccon reccon --out runs/llm
    mechm train llm --start-from runs/llm --train own/train.json --dev own/dev.json --lr 2e-4 --out runs/own
    torchrun --nproc-per-node 2 --no-python mechm train llm --train ecf/train.txt ...
    """
    from mechm.cli.train.console import ConsoleReporter
    from mechm.training.llm_from_files import LlamaRunConfig, train_llama_from_files

    config = LlamaRunConfig(
        train_file,
        dev_file,
        out,
        preset,
        base,
        start,
        reports,
        goemotions,
        comments,
        reccon,
        warmup_epochs,
        epochs,
        lr,
        max_tokens,
        checkpoint_activations,
        seed,
        threads,
        loop,
    )
    train_llama_from_files(config, ConsoleReporter())
