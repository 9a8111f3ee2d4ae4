"""The options of `mechm bench`: the conversation, the systems, and the number of measurements."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mechm.cli.options.engine import engine_option
from mechm.cli.options.llm import server_config
from mechm.cli.options.pipeline import DEFAULT_BUNDLE

if TYPE_CHECKING:
    from mechm.bench.rivals import Baseline, RivalConfig
    from mechm.bench.systems import MechmConfig
    from mechm_runtime.bundle.manifest import Bundle
    from mechm_runtime.engines.spec import EngineName
    from mechm_runtime.llm.rescoring import Llm
    from mechm_runtime.pipeline import Precision
    from mechm_runtime.types import Conversation

_File = click.Path(path_type=Path)
_Command = Callable[..., None]


@dataclass(frozen=True, slots=True)
class SystemOptions:
    """The systems that are measured, as the options name them."""

    bundle: Path | None
    llms: Sequence[Llm]
    llm_url: str | None
    precisions: Sequence[Precision]
    engine: EngineName
    modalities: tuple[str, ...]
    threads: int | None
    baselines: tuple[Baseline, ...]
    trained: Path | None
    adapter: Path | None

    @property
    def n_threads(self) -> int:
        """Threads that every system computes with."""
        from mechm_runtime.engines.base import EngineConfig

        return EngineConfig(n_threads=self.threads or 0).threads

    def asked_llms(self, bundle: Bundle) -> tuple[Llm, ...]:
        """One entry per configuration of MECHM; all that the bundle allows if none was asked for.

        Raises: UsageError: a server is named that nobody asks.
        """
        of_bundle: tuple[Llm, ...] = ("none",) if bundle.llama is None else ("none", "onnx")
        asked = tuple(dict.fromkeys(self.llms)) or of_bundle
        if self.llm_url is not None and "vllm" not in asked and "glue" not in self.baselines:
            raise click.UsageError("--llm-url is for --llm vllm and --baseline glue")
        return asked

    def own_configs(self, bundle: Bundle) -> tuple[MechmConfig, ...]:
        """MECHM in every configuration: each precision with each Llama.

        Raises: UsageError: as `asked_llms`. InputError: `llm_url` is no address.
        """
        from mechm.bench.systems import MechmConfig

        llms = self.asked_llms(bundle)
        precisions: tuple[Precision | None, ...] = tuple(dict.fromkeys(self.precisions)) or (None,)
        return tuple(
            MechmConfig(
                llm,
                precision,
                self.engine,
                self.n_threads,
                server_config(self.llm_url) if llm == "vllm" else None,
                self.modalities or None,
            )
            for precision in precisions
            for llm in llms
        )

    def rival_config(self, bundle: Bundle) -> RivalConfig:
        """The settings of the rivals; they use a Llama too if any configuration of MECHM does."""
        from mechm.bench.rivals import RivalConfig

        generates = any(llm != "none" for llm in self.asked_llms(bundle))
        server = None if self.llm_url is None else server_config(self.llm_url)
        return RivalConfig(self.n_threads, generates, self.trained, self.adapter, server, self.modalities)


_SYSTEM_OPTIONS = (
    click.option("--bundle", type=_File, metavar="DIR", help=f"The bundle to measure. {DEFAULT_BUNDLE}"),
    click.option(
        "--llm",
        "llms",
        type=click.Choice(["none", "onnx", "vllm"]),
        multiple=True,
        help="Where the Llama runs; may be repeated. Default: none, and onnx if the bundle has it.",
    ),
    click.option(
        "--llm-url", metavar="URL", help="A vLLM server with the bundle's Llama, for --llm vllm and --baseline glue."
    ),
    click.option(
        "--precision",
        "precisions",
        type=click.Choice(["fp32", "int8"]),
        multiple=True,
        help="Precision of all parts; may be repeated. Default: the bundle's own choice for each part.",
    ),
    engine_option,
    click.option(
        "--modality",
        "modalities",
        type=click.Choice(["text", "audio", "face", "scene"]),
        multiple=True,
        help="Modalities that all systems use; may be repeated. Default: those that the model was trained on.",
    ),
    click.option(
        "--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads. Default: one per core, up to 4."
    ),
    click.option(
        "--baseline",
        "baselines",
        type=click.Choice(["original", "compile", "glue"]),
        multiple=True,
        help="Measure a rival with the same weights, in turns with MECHM; may be repeated. original: torch eager, one "
        "voice and frame at a time, audio padded to 30 s, 20 tokens generated per answer. compile: torch.compile, no "
        "Llama. glue: plain onnxruntime in fp32 and vLLM's generate.",
    ),
    click.option(
        "--trained", type=_File, metavar="DIR", help="The rivals' weights of the fusion. Default: the shipped ones."
    ),
    click.option(
        "--adapter", type=_File, metavar="DIR", help="The rivals' adapter of the Llama. Default: the shipped one."
    ),
)


def system_options(command: _Command) -> _Command:
    """Add the systems, which the command receives as `systems: SystemOptions`."""

    @functools.wraps(command)
    def with_systems(
        *,
        bundle: Path | None,
        llms: tuple[Llm, ...],
        llm_url: str | None,
        precisions: tuple[Precision, ...],
        engine: EngineName,
        modalities: tuple[str, ...],
        threads: int | None,
        baselines: tuple[Baseline, ...],
        trained: Path | None,
        adapter: Path | None,
        **others: Any,
    ) -> None:
        from mechm_runtime.types import MODALITIES

        ordered = tuple(modality for modality in MODALITIES if modality in modalities)
        systems = SystemOptions(
            bundle, llms, llm_url, precisions, engine, ordered, threads, baselines, trained, adapter
        )
        command(systems=systems, **others)

    return _with(_SYSTEM_OPTIONS, with_systems)


_CONVERSATION_OPTIONS = (
    click.argument("source", metavar="[INPUT]", type=_File, required=False),
    click.option("--transcript", type=_File, metavar="FILE", help="Who says what, when, in INPUT."),
    click.option(
        "--utterances",
        "n_utterances",
        type=click.IntRange(min=1),
        default=10,
        show_default=True,
        metavar="N",
        help="Length of the conversation; a shorter one is repeated from its start.",
    ),
)


def conversation_options(command: _Command) -> _Command:
    """Add INPUT, its transcript and its length, which the command receives as `conversation`."""

    @functools.wraps(command)
    def with_conversation(*, source: Path | None, transcript: Path | None, n_utterances: int, **others: Any) -> None:
        command(conversation=_conversation(source, transcript, n_utterances), **others)

    return _with(_CONVERSATION_OPTIONS, with_conversation)


_AMOUNT_OPTIONS = (
    click.option(
        "--repeats",
        type=click.IntRange(min=1),
        metavar="N",
        default=40,
        show_default=True,
        help="Queries per MECHM system.",
    ),
    click.option(
        "--rounds", type=click.IntRange(min=1), metavar="N", default=3, show_default=True, help="Queries per rival."
    ),
    click.option(
        "--starts",
        type=click.IntRange(min=1),
        metavar="N",
        default=3,
        show_default=True,
        help="Processes started per row.",
    ),
    click.option(
        "--queries",
        type=click.IntRange(min=1),
        metavar="N",
        default=16,
        show_default=True,
        help="Queries of `offline`.",
    ),
    click.option(
        "--bound",
        "bound_ms",
        type=click.FloatRange(min=0, min_open=True),
        default=2000.0,
        show_default=True,
        metavar="MS",
        help="The p99 that `server` has to stay below, in milliseconds.",
    ),
    click.option(
        "--duration",
        "duration_s",
        type=click.FloatRange(min=0, min_open=True),
        default=8.0,
        show_default=True,
        metavar="SECONDS",
        help="How long queries arrive, per rate that `server` tries.",
    ),
    click.option(
        "--turns",
        type=click.IntRange(min=5),
        default=100,
        show_default=True,
        metavar="N",
        help="Length of a session; its newest utterance is timed at turn 5, at 20 and at the last.",
    ),
)


def amount_options(command: _Command) -> _Command:
    """Add the numbers of measurements, which the command receives as `amounts: Amounts`."""

    @functools.wraps(command)
    def with_amounts(
        *,
        repeats: int,
        rounds: int,
        starts: int,
        queries: int,
        bound_ms: float,
        duration_s: float,
        turns: int,
        **others: Any,
    ) -> None:
        from mechm.bench.run import Amounts
        from mechm.bench.session import TURNS

        timed = tuple(sorted({*(turn for turn in TURNS if turn <= turns), turns}))
        command(amounts=Amounts(repeats, rounds, starts, queries, timed, bound_ms, duration_s), **others)

    return _with(_AMOUNT_OPTIONS, with_amounts)


def _with(options: Sequence[Callable[[_Command], _Command]], command: _Command) -> _Command:
    for option in reversed(options):
        command = option(command)
    return command


def _conversation(source: Path | None, transcript: Path | None, n_utterances: int) -> Conversation:
    """The first conversation of INPUT, or the shipped sample, cut or repeated to a number of utterances."""
    from mechm.bench.workload import sample_conversation, with_length
    from mechm.cli.options.inputs import load_conversations

    if source is None:
        if transcript is not None:
            raise click.UsageError("--transcript goes with an INPUT")
        source, transcript = sample_conversation()
    return with_length(load_conversations(source, transcript)[0], n_utterances)
