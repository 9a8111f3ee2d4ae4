"""`mechm train combination`."""

from __future__ import annotations

from pathlib import Path

import click

from mechm.cli.options.renamed import RenamedOptions
from mechm.cli.train.options import adapter_options

_file = click.Path(path_type=Path)


@click.command(cls=RenamedOptions, renamed={"--report": "--score"})
@adapter_options
@click.option(
    "--dev", "dev_file", type=_file, required=True, metavar="FILE", help="Conversations to fit the weights on."
)
@click.option(
    "--score", "reports", type=_file, multiple=True, metavar="FILE", help="Score these too; not used for fitting."
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: torch's own choice.")
def combination(
    preset: str,
    adapter: Path,
    fusion_folder: Path | None,
    base: Path | None,
    dev_file: Path,
    reports: tuple[Path, ...],
    threads: int | None,
) -> None:
    """Fit the weights of the Llama and the fusion in their combination on --dev; write ADAPTER/combination.json.

    A bundle with both models uses it, so fit it again when either has changed.

    \b
    mechm train combination --adapter runs/llm --fusion runs/fusion --dev ecf/dev.txt --score ecf/test.txt
    """
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mechm.model.build import pretrained_folder
    from mechm.training.llm_combination import combine_llama_with_fusion
    from mechm_runtime.readers import read_labelled

    if threads is not None:
        torch.set_num_threads(threads)
    splits = {path.name: read_labelled(path) for path in (dev_file, *reports)}
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks = {name: progress.add_task(f"Asking on {name}", total=len(split)) for name, split in splits.items()}
        fitted = combine_llama_with_fusion(
            preset,
            adapter,
            fusion_folder or pretrained_folder(preset),
            splits,
            base=base,
            on_progress=lambda name, done, _total: progress.update(tasks[name], completed=done),
        )
    for name, systems in fitted.scores.items():
        for system, found in systems.items():
            click.echo(
                f"{name}, {system}: weighted F1 {found['weighted_f1']:.4f}, micro F1 {found['micro_f1']:.4f}, "
                f"emotion accuracy {found['emotion_accuracy']:.4f} (text only)"
            )
    click.echo(f"the Llama is asked where the fusion's likeliest emotion is below {fitted.combination.asked_below:g}")
    click.echo(f"wrote {adapter / 'combination.json'}")
