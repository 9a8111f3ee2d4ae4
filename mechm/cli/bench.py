"""`mechm bench`: measures a bundle on this machine, beside rivals if they are asked for."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from mechm.cli.options.bench import amount_options, conversation_options, system_options

if TYPE_CHECKING:
    from mechm.bench.results import Results
    from mechm.bench.run import Amounts, Scenario
    from mechm.cli.options.bench import SystemOptions
    from mechm_runtime.types import Conversation, LabelledConversation

SCENARIOS = ("single-stream", "stages", "offline", "server", "session", "scaling", "start")
ALL = "all"

EXAMPLES = """\b
Examples:
  mechm bench
  mechm bench talk.mp4 --transcript talk.srt --scenario single-stream
  mechm bench --baseline original --gold ecf/test.txt --out results
  mechm serve llm --bundle DIR   # and in another terminal:
  mechm bench --bundle DIR --baseline glue --llm-url http://127.0.0.1:8000
"""

_File = click.Path(path_type=Path)


@click.command(epilog=EXAMPLES)
@conversation_options
@click.option(
    "--scenario",
    "scenarios",
    type=click.Choice([*SCENARIOS, ALL]),
    multiple=True,
    help="Scenario to measure; may be repeated. Default: all.",
)
@system_options
@click.option(
    "--gold", type=_File, metavar="FILE", help="Score every system on the text of these annotated conversations."
)
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="Score only the first N conversations of --gold."
)
@click.option(
    "--rival-limit",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="N",
    help="Score rivals only on the first N conversations of --gold.",
)
@amount_options
@click.option(
    "--out", type=_File, metavar="DIR", help="Write the results (JSON) and figures (SVG; needs mechm[bench]) there."
)
def bench(
    conversation: Conversation,
    scenarios: tuple[str, ...],
    systems: SystemOptions,
    gold: Path | None,
    limit: int | None,
    rival_limit: int,
    amounts: Amounts,
    out: Path | None,
) -> None:
    """Measure the speed, memory and accuracy of a bundle on this machine.

    INPUT is a recording, a transcript or a folder of clips, as for `mechm analyze`; its first conversation is analysed
    again and again. Default: the sample conversation of a checkout, ten utterances with voice and picture.

    \b
    single-stream  one query after the other: p50, p90, p99, and the speedup over each --baseline
    stages         time per model as a share of the machine's limit, and the time around the models
    offline        all queries at once: conversations per second
    server         queries arrive at random: the highest rate whose p99 stays below --bound
    session        the newest utterance of a growing conversation, and several sessions at once
    scaling        longer conversations, longer utterances, more callers
    start          from the start of a process to its first result, and memory

    With --gold, every system is also scored by the task's scorer. Prints tables and, as the last line, JSON. Close
    other programs first: they slow down what is measured.
    """
    from mechm.bench.run import BenchConfig, run_bench
    from mechm.cli.options.progress import steps_progress
    from mechm_runtime.bundle.open import open_bundle

    labelled = _gold(gold, limit)
    if out is not None:
        _check_folder(out)
    bundle = open_bundle(systems.bundle)
    config = BenchConfig(
        scenarios=_scenarios(scenarios),
        own=systems.own_configs(bundle),
        conversation=conversation,
        n_threads=systems.n_threads,
        rivals=systems.rival_config(bundle),
        modalities=systems.modalities,
        baselines=systems.baselines,
        gold=labelled,
        gold_name="" if gold is None else gold.name,
        n_short=rival_limit,
        amounts=amounts,
        command=_command(sys.argv[1:]),
    )
    with steps_progress() as on_progress:
        results = run_bench(bundle, config, on_progress)
    _show(results, out)


def _show(results: Results, out: Path | None) -> None:
    """Print the results, and write them into a folder if one was given.

    Without matplotlib the JSON is written and the missing figures are reported: hours of measuring are not thrown away.
    """
    from rich.console import Console

    from mechm.bench.figures import write_figures
    from mechm.bench.report import render
    from mechm_runtime.errors import MissingExtraError
    from mechm_runtime.output.writers import write_bytes

    Console().print(render(results))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{results.file_stem}.json"
        write_bytes(path, (results.to_json(lines=True) + "\n").encode())
        click.echo(f"wrote {path}", err=True)
        try:
            for figure in write_figures(results, out):
                click.echo(f"wrote {figure}", err=True)
        except MissingExtraError as error:
            click.echo(f"no figures: {error}; {error.hint}", err=True)
    click.echo(results.to_json())


def _gold(gold: Path | None, limit: int | None) -> Sequence[LabelledConversation]:
    if gold is None:
        if limit is not None:
            raise click.UsageError("--limit counts conversations of --gold")
        return ()
    from mechm_runtime.readers import read_labelled

    return read_labelled(gold)[:limit]


def _check_folder(out: Path) -> None:
    """Refuse before the work what could not be written after it."""
    from mechm_runtime.errors import InputError

    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file", hint="give the name of a folder")


def _scenarios(chosen: tuple[str, ...]) -> tuple[Scenario, ...]:
    names = SCENARIOS if not chosen or ALL in chosen else tuple(name for name in SCENARIOS if name in chosen)
    return cast("tuple[Scenario, ...]", names)


def _command(arguments: Sequence[str]) -> str:
    """The command line without the folders of this machine."""
    shown = (Path(word).name if "/" in word and "://" not in word else word for word in arguments)
    return shlex.join(["mechm", *shown])
