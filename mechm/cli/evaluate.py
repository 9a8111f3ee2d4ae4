"""`mechm evaluate`: score a submission or a bundle on annotated conversations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mechm.cli.options.engine import engine_option
from mechm.cli.options.llm import llm_options

if TYPE_CHECKING:
    from mechm.evaluation.report import ScoreReport
    from mechm_runtime.bundle.precision import EngineName
    from mechm_runtime.llm.rescoring import Llm
    from mechm_runtime.llm.vllm.config import ServerConfig
    from mechm_runtime.pipeline import Precision
    from mechm_runtime.types import LabelledConversation


@click.command()
@click.argument("gold", type=click.Path(path_type=Path))
@click.option(
    "--submission", type=click.Path(path_type=Path), metavar="FILE", help="Score this SemEval submission (JSON)."
)
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Analyse with this bundle. Default: the one that `make demo` built, or MECHM_BUNDLE.",
)
@click.option("--precision", type=click.Choice(["fp32", "int8"]), help="Which of the bundle's precisions to run.")
@engine_option
@llm_options
@click.option(
    "--clips",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Analyse sound and picture too: a clip per utterance (dia1utt1.mp4, or as MELD stores them).",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Score only the first N conversations.")
@click.option(
    "--abstain-below",
    type=click.FloatRange(0, 1),
    multiple=True,
    metavar="P",
    help="Also say what is left if it abstains where no emotion is this probable; may be repeated.",
)
@click.option(
    "--figures",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write confusion.svg, risk_coverage.svg and reliability.svg there.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), metavar="FILE", help="Write the scores as JSON.")
def evaluate(
    gold: Path,
    submission: Path | None,
    bundle: Path | None,
    precision: Precision | None,
    engine: EngineName,
    llm: Llm | None,
    asked_below: float | None,
    server: ServerConfig | None,
    clips: Path | None,
    limit: int | None,
    abstain_below: tuple[float, ...],
    figures: Path | None,
    json_path: Path | None,
) -> None:
    """Score a bundle, or a submission that exists, on annotated data.

    GOLD is ECF / SemEval JSON with emotions and pairs, or MECPE text (ECF's train.txt, dev.txt, test.txt). The score
    is that of SemEval-2024 Task 3 Subtask 2: F1 over six emotions, weighted by how often each is annotated; and micro
    F1. Scores on different gold files do not compare.

    A bundle's emotions and probabilities are scored too: confusion, calibration error, risk against coverage.
    """
    if submission is not None:
        options = {
            "--bundle": bundle,
            "--precision": precision,
            "--llm": llm,
            "--llm-below": asked_below,
            "--clips": clips,
            "--figures": figures,
        }
        for name, value in (options | {"--abstain-below": abstain_below or None}).items():
            if value is not None:
                raise click.UsageError(f"--submission is scored as it is: leave {name} out")

    from rich.console import Console

    from mechm.evaluation.figures import write_figures
    from mechm.evaluation.report import render
    from mechm.evaluation.run import score_submission
    from mechm_runtime.errors import InputError
    from mechm_runtime.output.writers import write_bytes
    from mechm_runtime.readers import read_labelled, read_submission

    # Before the work, not after it: analysing a test set can take an hour.
    if json_path is not None and not json_path.parent.is_dir():
        raise InputError(f"{json_path}: the folder does not exist", hint=f"mkdir -p {json_path.parent}")
    if figures is not None and figures.exists() and not figures.is_dir():
        raise InputError(f"--figures {figures} is a file", hint="give the name of a folder")
    labelled = read_labelled(gold)
    gold_name = gold.name
    if limit is not None and limit < len(labelled):
        gold_name = f"{gold.name}, first {limit} of {len(labelled)}"
        labelled = labelled[:limit]
    if submission is not None:
        report = score_submission(
            labelled, read_submission(submission), gold_name=gold_name, system=f"submission {submission.name}"
        )
    else:
        report = _run_bundle(
            gold,
            labelled,
            gold_name,
            bundle=bundle,
            precision=precision,
            engine=engine,
            llm=llm,
            asked_below=asked_below,
            server=server,
            clips=clips,
            abstain_below=abstain_below,
        )
    Console().print(render(report))
    if json_path is not None:
        write_bytes(json_path, (report.to_json() + "\n").encode())
    if figures is not None:
        for path in write_figures(report, figures):
            click.echo(f"wrote {path}")


def _run_bundle(
    gold: Path,
    labelled: Sequence[LabelledConversation],
    gold_name: str,
    *,
    bundle: Path | None,
    precision: Precision | None,
    engine: EngineName,
    llm: Llm | None,
    asked_below: float | None,
    server: ServerConfig | None,
    clips: Path | None,
    abstain_below: Sequence[float],
) -> ScoreReport:
    """Analyse the conversations with a bundle, with a progress bar on the terminal's error stream."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mechm.evaluation.run import evaluate as run_evaluation
    from mechm_runtime.engines.base import EngineConfig
    from mechm_runtime.pipeline import Pipeline
    from mechm_runtime.readers import clip_names, clips_for

    conversations = None
    if clips is not None:
        conversations = clips_for([one.conversation for one in labelled], clips, names=clip_names(gold))
    pipeline = Pipeline.from_bundle(
        bundle, precision=precision, engine=EngineConfig(engine=engine), llm=llm, server=server, asked_below=asked_below
    )
    run: list[str] = [precision] if precision else []
    run += [engine] if engine != "onnxruntime" else []
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("utterances"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("Analysing", total=sum(len(one.emotions) for one in labelled))
        return run_evaluation(
            labelled,
            pipeline.analyze,
            gold_name=gold_name,
            system=", ".join([f"bundle {pipeline.bundle_id}", *run, f"llm {pipeline.llm}"]),
            conversations=conversations,
            abstain_below=abstain_below,
            on_progress=lambda n_utterances: progress.advance(task, n_utterances),
        )
