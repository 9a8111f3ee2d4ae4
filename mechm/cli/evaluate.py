"""`mechm evaluate`: scores a submission or a bundle on annotated conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mechm.cli.options.pipeline import pipeline_options
from mechm.cli.options.renamed import RenamedOptions

if TYPE_CHECKING:
    from mechm.cli.options.pipeline import PipelineOptions
    from mechm.evaluation.gold import Gold
    from mechm.evaluation.report import ScoreReport

_File = click.Path(path_type=Path)


@click.command(cls=RenamedOptions, renamed={"--submission": "--predictions"})
@click.argument("gold_path", metavar="GOLD", type=_File)
@click.option(
    "--predictions",
    "submission",
    type=_File,
    metavar="FILE",
    help="Score this SemEval submission (JSON), not a bundle.",
)
@pipeline_options
@click.option(
    "--clips",
    type=_File,
    metavar="DIR",
    help="Analyse audio and video too: a folder with one clip per utterance (dia1utt1.mp4, or in MELD's folders). "
    "Default: text alone.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Score only the first N conversations.")
@click.option(
    "--abstain-below",
    type=click.FloatRange(0, 1),
    multiple=True,
    metavar="P",
    help="Also score abstention: no answer where no emotion has a probability of P; may be repeated.",
)
@click.option(
    "--figures",
    type=_File,
    metavar="DIR",
    help="Write confusion.svg, risk_coverage.svg and reliability.svg there (needs mechm[bench]).",
)
@click.option("--json", "json_path", type=_File, metavar="FILE", help="Write the scores as JSON.")
def evaluate(
    gold_path: Path,
    submission: Path | None,
    options: PipelineOptions,
    clips: Path | None,
    limit: int | None,
    abstain_below: tuple[float, ...],
    figures: Path | None,
    json_path: Path | None,
) -> None:
    """Score a bundle, or an existing submission, on annotated conversations.

    GOLD is ECF / SemEval JSON with emotions and pairs, or MECPE text (ECF's train.txt, dev.txt, test.txt). The score
    is that of SemEval-2024 Task 3 Subtask 2: F1 over six emotions, weighted by how often each is annotated; and micro
    F1. Scores on different gold files are not comparable.

    For a bundle, emotions and probabilities are scored too: confusion, calibration error, risk against coverage.
    """
    if submission is not None:
        refuse_bundle_options(options, {"--clips": clips, "--figures": figures, "--abstain-below": abstain_below})
    check_outputs(json_path, figures)

    from mechm.evaluation.gold import read_gold
    from mechm.evaluation.run import score_submission
    from mechm_runtime.readers import read_submission

    gold = read_gold(gold_path, limit)
    if submission is None:
        report = evaluate_bundle(gold, options, clips, abstain_below)
    else:
        predicted = read_submission(submission)
        system = f"submission {submission.name}"
        report = score_submission(gold.conversations, predicted, gold_name=gold.name, system=system)
    write_report(report, json_path, figures)


def refuse_bundle_options(options: PipelineOptions, others: Mapping[str, object]) -> None:
    """Refuse options that have no effect on a submission.

    others: values by option.
    Raises: UsageError: one of them was given.
    """
    given = {
        "--bundle": options.bundle,
        "--precision": options.precision,
        "--llm": options.llm,
        "--llm-below": options.asked_below,
        **others,
    }
    for name, value in given.items():
        if value not in (None, ()):
            raise click.UsageError(f"--predictions are scored as they are: leave {name} out")


def check_outputs(json_path: Path | None, figures: Path | None) -> None:
    """Refuse outputs that would fail, before the work: analysing a test set can take an hour.

    Raises: InputError: a folder is missing, or a file is in its place. MissingExtraError: figures without matplotlib.
    """
    from mechm.evaluation.figures import require_matplotlib
    from mechm_runtime.errors import InputError

    if json_path is not None and not json_path.parent.is_dir():
        raise InputError(f"{json_path}: the folder does not exist", hint=f"mkdir -p {json_path.parent}")
    if figures is not None and figures.exists() and not figures.is_dir():
        raise InputError(f"--figures {figures} is a file", hint="give the name of a folder")
    if figures is not None:
        require_matplotlib()


def evaluate_bundle(
    gold: Gold, options: PipelineOptions, clips: Path | None, abstain_below: Sequence[float]
) -> ScoreReport:
    """Analyse the conversations with a bundle, with a progress bar, and score the answers."""
    from mechm.cli.options.progress import utterance_progress
    from mechm.evaluation.run import evaluate as score_analyses
    from mechm_runtime.engines.spec import DEFAULT_ENGINE

    conversations = None if clips is None else gold.with_clips(clips)
    pipeline = options.load()
    pipeline.check_llm()  # scores of the fusion alone would pass for the Llama's
    engine = None if options.engine == DEFAULT_ENGINE else options.engine
    system = (f"bundle {pipeline.bundle_id}", options.precision, engine, f"llm {pipeline.llm}")
    with utterance_progress(gold.n_utterances) as on_progress:
        return score_analyses(
            gold.conversations,
            pipeline.analyze,
            gold_name=gold.name,
            system=", ".join(filter(None, system)),
            conversations=conversations,
            abstain_below=abstain_below,
            on_progress=on_progress,
        )


def write_report(report: ScoreReport, json_path: Path | None, figures: Path | None) -> None:
    """Print the report as tables, and write it as JSON and as figures where these were asked for."""
    from rich.console import Console

    from mechm.evaluation.figures import write_figures
    from mechm.evaluation.report import render
    from mechm_runtime.output.writers import write_bytes

    Console().print(render(report))
    if json_path is not None:
        write_bytes(json_path, (report.to_json() + "\n").encode())
    if figures is not None:
        for path in write_figures(report, figures):
            click.echo(f"wrote {path}")
