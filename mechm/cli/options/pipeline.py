"""The bundle and how it is run: the options that `mechm analyze` and `mechm evaluate` share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mechm.cli.options.engine import engine_option
from mechm.cli.options.llm import LLM_OPTIONS, server_for

if TYPE_CHECKING:
    from mechm_runtime.engines.spec import EngineName
    from mechm_runtime.llm.rescoring import Llm
    from mechm_runtime.llm.vllm.config import ServerConfig
    from mechm_runtime.media import MediaLimits
    from mechm_runtime.pipeline import Pipeline, Precision

DEFAULT_BUNDLE = "Default: MECHM_BUNDLE, or the one in the cache folder."


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """The options as they were given; None where one was left out."""

    bundle: Path | None
    precision: Precision | None
    engine: EngineName
    llm: Llm | None
    asked_below: float | None
    server: ServerConfig | None

    def load(
        self,
        *,
        n_threads: int | None = None,
        modalities: Sequence[str] | None = None,
        limits: MediaLimits | None = None,
    ) -> Pipeline:
        """Load the pipeline.

        n_threads, modalities, limits: None for the runtime's defaults.
        Raises: BundleError, ProviderError, MissingExtraError, LlmUnavailableError.
        """
        from mechm_runtime.engines.base import EngineConfig
        from mechm_runtime.pipeline import Pipeline

        return Pipeline.from_bundle(
            self.bundle,
            precision=self.precision,
            engine=EngineConfig(n_threads=n_threads or 0, engine=self.engine),
            modalities=modalities,
            limits=limits,
            llm=self.llm,
            server=self.server,
            asked_below=self.asked_below,
        )


_OPTIONS = (
    click.option(
        "--bundle",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help=f"The bundle to analyse with. {DEFAULT_BUNDLE}",
    ),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "int8"]),
        help="Precision of all parts. Default: the bundle's own choice for each part.",
    ),
    engine_option,
    *LLM_OPTIONS,
)


def pipeline_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options; the command receives them as `options: PipelineOptions`."""

    @functools.wraps(command)
    def with_options(
        *,
        bundle: Path | None,
        precision: Precision | None,
        engine: EngineName,
        llm: Llm | None,
        llm_url: str | None,
        llm_below: float | None,
        **others: Any,
    ) -> None:
        server = server_for(llm, llm_url, llm_below)
        command(options=PipelineOptions(bundle, precision, engine, llm, llm_below, server), **others)

    for option in reversed(_OPTIONS):
        with_options = option(with_options)
    return with_options
