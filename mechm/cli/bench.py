"""`mechm bench`: measure a bundle on this machine, beside rivals where they are asked for."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from mechm.cli.options.engine import engine_option
from mechm.cli.options.llm import server_config

if TYPE_CHECKING:
    from mechm.bench.rivals import Baseline, RivalConfig
    from mechm.bench.run import Scenario
    from mechm.bench.systems import OwnConfig
    from mechm_runtime.bundle.manifest import Bundle
    from mechm_runtime.bundle.precision import EngineName
    from mechm_runtime.llm.rescoring import Llm
    from mechm_runtime.pipeline import Precision
    from mechm_runtime.types import Conversation, LabelledConversation

SCENARIOS = ("single-stream", "stages", "offline", "server", "session", "scaling", "start")
ALL = "all"

EXAMPLES = """\b
Examples:
  mechm bench
  mechm bench talk.mp4 --transcript talk.srt --scenario single-stream
  mechm bench --baseline original --gold ecf/test.txt --out results
  mechm serve llm --bundle DIR   # and beside it:
  mechm bench --bundle DIR --baseline glue --llm-url http://127.0.0.1:8000
"""

_File = click.Path(path_type=Path)


@click.command(epilog=EXAMPLES)
@click.argument("source", metavar="[INPUT]", type=_File, required=False)
@click.option("--transcript", type=_File, metavar="FILE", help="Who says what, and when, in INPUT.")
@click.option(
    "--bundle", type=_File, metavar="DIR", help="Default: the bundle that `make demo` built, or MECHM_BUNDLE."
)
@click.option(
    "--scenario",
    "scenarios",
    type=click.Choice([*SCENARIOS, ALL]),
    multiple=True,
    help="What to measure; may be repeated. Default: all.",
)
@click.option(
    "--utterances",
    "n_utterances",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="N",
    help="Utterances of the conversation; a shorter one is told again from its start.",
)
@click.option(
    "--llm",
    "llms",
    type=click.Choice(["none", "onnx", "vllm"]),
    multiple=True,
    help="Which Llama is asked; may be repeated. Default: none, and onnx where the bundle has it.",
)
@click.option(
    "--llm-url", metavar="URL", help="A vLLM server with the bundle's Llama, for --llm vllm and --baseline glue."
)
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(["fp32", "int8"]),
    multiple=True,
    help="May be repeated. Default: the bundle's own choice part by part.",
)
@engine_option
@click.option(
    "--modality",
    "modalities",
    type=click.Choice(["text", "audio", "face", "scene"]),
    multiple=True,
    help="What ours and rivals read; may be repeated. Default: what the bundle's weights learned to read.",
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Default: up to four, one a core.")
@click.option(
    "--baseline",
    "baselines",
    type=click.Choice(["original", "compile", "glue"]),
    multiple=True,
    help="A rival on the same weights, in turns with ours; may be repeated. original: torch eager, each voice and "
    "frame by itself, 30 s of padding, 20 tokens written an answer. compile: torch.compile, no Llama. glue: plain "
    "onnxruntime in fp32 and vLLM's generate.",
)
@click.option("--trained", type=_File, metavar="DIR", help="The fusion's weights for the rivals. Default: as shipped.")
@click.option("--adapter", type=_File, metavar="DIR", help="The Llama's adapter for the rivals. Default: as shipped.")
@click.option("--gold", type=_File, metavar="FILE", help="Annotated conversations: score every system on their words.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Score only the first N conversations.")
@click.option(
    "--rival-limit",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="N",
    help="Conversations that rivals are scored on.",
)
@click.option("--repeats", type=click.IntRange(min=1), default=40, show_default=True, help="Queries of ours.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Queries of each rival.")
@click.option("--starts", type=click.IntRange(min=1), default=3, show_default=True, help="Fresh processes.")
@click.option("--queries", type=click.IntRange(min=1), default=16, show_default=True, help="Of the offline scenario.")
@click.option(
    "--bound",
    "bound_ms",
    type=click.FloatRange(min=0, min_open=True),
    default=2000.0,
    show_default=True,
    metavar="MS",
    help="The server's p99 must stay below.",
)
@click.option(
    "--duration",
    "duration_s",
    type=click.FloatRange(min=0, min_open=True),
    default=8.0,
    show_default=True,
    metavar="SECONDS",
    help="Of arrivals at the server, at each rate that is tried.",
)
@click.option(
    "--turns",
    type=click.IntRange(min=5),
    default=100,
    show_default=True,
    metavar="N",
    help="Length of a session; its newest utterance is timed at turn 5, at 20 and at the end.",
)
@click.option("--out", type=_File, metavar="DIR", help="Write the results (JSON) and pictures (SVG) there.")
def bench(
    source: Path | None,
    transcript: Path | None,
    bundle: Path | None,
    scenarios: tuple[str, ...],
    n_utterances: int,
    llms: tuple[Llm, ...],
    llm_url: str | None,
    precisions: tuple[Precision, ...],
    engine: EngineName,
    modalities: tuple[str, ...],
    threads: int | None,
    baselines: tuple[Baseline, ...],
    trained: Path | None,
    adapter: Path | None,
    gold: Path | None,
    limit: int | None,
    rival_limit: int,
    repeats: int,
    rounds: int,
    starts: int,
    queries: int,
    bound_ms: float,
    duration_s: float,
    turns: int,
    out: Path | None,
) -> None:
    """Measure a bundle on this machine.

    INPUT is what `mechm analyze` takes, of which the first conversation is analysed again and again; without one, the
    sample conversation of a checkout: ten utterances with voice and picture.

    \b
    single-stream  one query after the other: p50, p90, p99, and how much faster than each --baseline
    stages         each model's share of what the machine can do, and the time around the models
    offline        all queries at once: conversations a second
    server         queries arrive by chance: the highest rate whose p99 stays below --bound
    session        the newest utterance of a conversation that goes on, and sessions at once
    scaling        longer conversations, longer utterances, more callers
    start          from the start of a process to its first result, and memory

    With --gold every system is scored by the task's scorer as well. Prints tables and, as its last line, JSON. Close
    other programs: a busy machine measures itself.
    """
    from rich.console import Console

    from mechm.bench.figures import write_figures
    from mechm.bench.report import render
    from mechm.bench.run import BenchConfig, run_bench
    from mechm.bench.session import TURNS
    from mechm.cli.options.progress import steps_progress
    from mechm_runtime.bundle.open import open_bundle
    from mechm_runtime.engines.base import EngineConfig
    from mechm_runtime.output.writers import write_bytes
    from mechm_runtime.types import MODALITIES

    conversation = _conversation(source, transcript, n_utterances)
    labelled = _gold(gold, limit)
    if out is not None:
        _check_folder(out)
    opened = open_bundle(bundle)
    n_threads = EngineConfig(n_threads=threads or 0).threads
    modalities = tuple(m for m in MODALITIES if m in modalities)
    own, writes = _own(opened, llms, precisions, engine, n_threads, llm_url, modalities, uses_url="glue" in baselines)
    config = BenchConfig(
        scenarios=_scenarios(scenarios),
        own=own,
        conversation=conversation,
        n_threads=n_threads,
        rivals=_rival_config(n_threads, writes, trained, adapter, llm_url, modalities),
        modalities=modalities,
        baselines=baselines,
        gold=labelled,
        gold_name="" if gold is None else gold.name,
        n_short=rival_limit,
        n_repeats=repeats,
        n_rounds=rounds,
        n_starts=starts,
        n_queries=queries,
        turns=tuple(sorted({*(turn for turn in TURNS if turn <= turns), turns})),
        bound_ms=bound_ms,
        duration_s=duration_s,
        command=_command(sys.argv[1:]),
    )
    with steps_progress() as on_progress:
        results = run_bench(opened, config, on_progress)
    Console().print(render(results))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{results.file_stem}.json"
        write_bytes(path, (results.to_json(lines=True) + "\n").encode())
        for written in (path, *write_figures(results, out)):
            click.echo(f"wrote {written}", err=True)
    click.echo(results.to_json())


def _conversation(source: Path | None, transcript: Path | None, n_utterances: int) -> Conversation:
    from mechm.bench.workload import of_length, sample_conversation
    from mechm.cli.options.inputs import load_conversations

    if source is None:
        if transcript is not None:
            raise click.UsageError("--transcript goes with an INPUT")
        source, transcript = sample_conversation()
    return of_length(load_conversations(source, transcript)[0], n_utterances)


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


def _own(
    bundle: Bundle,
    llms: tuple[Llm, ...],
    precisions: tuple[Precision, ...],
    engine: EngineName,
    n_threads: int,
    llm_url: str | None,
    modalities: tuple[str, ...],
    *,
    uses_url: bool,
) -> tuple[tuple[OwnConfig, ...], bool]:
    """Ours in every configuration, and whether a Llama takes part in any."""
    from mechm.bench.systems import OwnConfig

    has_llama: tuple[Llm, ...] = ("none",) if bundle.llama is None else ("none", "onnx")
    asked = tuple(dict.fromkeys(llms)) or has_llama
    if llm_url is not None and "vllm" not in asked and not uses_url:
        raise click.UsageError("--llm-url is for --llm vllm and --baseline glue")
    choices: tuple[Precision | None, ...] = tuple(dict.fromkeys(precisions)) or (None,)
    own = tuple(
        OwnConfig(
            llm, precision, engine, n_threads, server_config(llm_url) if llm == "vllm" else None, modalities or None
        )
        for precision in choices
        for llm in asked
    )
    return own, any(llm != "none" for llm in asked)


def _rival_config(
    n_threads: int,
    writes: bool,
    trained: Path | None,
    adapter: Path | None,
    llm_url: str | None,
    modalities: tuple[str, ...],
) -> RivalConfig:
    from mechm.bench.rivals import RivalConfig

    server = None if llm_url is None else server_config(llm_url)
    return RivalConfig(n_threads, writes, trained, adapter, server, modalities)


def _command(arguments: Sequence[str]) -> str:
    """The command line without the folders of this machine."""
    shown = (Path(word).name if "/" in word and "://" not in word else word for word in arguments)
    return shlex.join(["mechm", *shown])
