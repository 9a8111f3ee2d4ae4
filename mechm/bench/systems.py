"""The systems that are measured: MECHM in one configuration, or a rival, behind one interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mechm_runtime.bundle.manifest import Bundle, PartFiles
from mechm_runtime.engines.base import EngineConfig, GraphRunner
from mechm_runtime.engines.part_loader import PartLoader
from mechm_runtime.engines.spec import DEFAULT_ENGINE, EngineName
from mechm_runtime.errors import LlmUnavailableError
from mechm_runtime.llm.rescoring import Llm
from mechm_runtime.llm.vllm.config import ServerConfig
from mechm_runtime.pipeline import Pipeline, Precision
from mechm_runtime.types import Analysis, Conversation

LoadPart = Callable[[PartFiles], GraphRunner]
Wrap = Callable[[LoadPart], LoadPart]
"""Replaces the function that loads a part, to observe the part's runs."""


class System(Protocol):
    """A system that analyses conversations."""

    @property
    def name(self) -> str:
        """Its name in tables."""

    @property
    def llm(self) -> bool:
        """Whether it uses a Llama."""

    def prepare(self) -> None:
        """Load everything.

        Raises: MechmError: weights or packages are missing.
        """

    def analyze(self, conversation: Conversation) -> Analysis:
        """Analyse one conversation, with the milliseconds of every stage."""


@dataclass(frozen=True, slots=True)
class MechmConfig:
    """MECHM in one configuration.

    precision: of all parts; None for the bundle's own choice for each part. n_threads: inside an operator.
    modalities: that are used; None for those that the bundle's weights were trained on.
    """

    llm: Llm
    precision: Precision | None
    engine: EngineName
    n_threads: int
    server: ServerConfig | None = None
    modalities: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """Such as `mechm, no Llama` with the bundle's own precisions, or `mechm openvino fp32, Llama`."""
        llama = {"none": "no Llama", "onnx": "Llama", "vllm": "Llama on vLLM"}.get(self.llm, self.llm)
        engine = "" if self.engine == DEFAULT_ENGINE else self.engine
        return f"{' '.join(word for word in ('mechm', engine, self.precision) if word)}, {llama}"


class MechmSystem:
    """MECHM's pipeline on a bundle, without any cache between analyses.

    wrap: see `Wrap`; None for the pipeline as it is.
    """

    def __init__(self, bundle: Bundle, config: MechmConfig, wrap: Wrap | None = None) -> None:
        self.config = config
        self._bundle = bundle
        self._wrap = wrap
        self._pipeline: Pipeline | None = None

    @property
    def name(self) -> str:
        """Its name in tables."""
        return self.config.name

    @property
    def llm(self) -> bool:
        """Whether it uses a Llama."""
        return self.config.llm != "none"

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline, loaded on first use."""
        if self._pipeline is None:
            self._pipeline = self._load()
        return self._pipeline

    def prepare(self) -> None:
        """Load the pipeline; the encoders of audio and video are loaded by the first conversation that has them."""
        self._pipeline = self._load()

    def analyze(self, conversation: Conversation) -> Analysis:
        """Analyse one conversation.

        Raises: LlmUnavailableError: the Llama did not answer, so that the time would be that of the fusion alone.
        """
        analysis = self.pipeline.analyze(conversation)
        if self.config.server is not None:
            for utterance in analysis.utterances:
                if reason := utterance.missing.get("llm"):
                    raise LlmUnavailableError(f"the Llama took no part: {reason}")
        return analysis

    def _load(self) -> Pipeline:
        config, bundle = self.config, self._bundle
        precisions = dict.fromkeys(bundle.parts, config.precision)
        engine = EngineConfig(engine=config.engine, n_threads=config.n_threads)
        return Pipeline(
            bundle,
            precisions=precisions,
            engine=engine,
            llm=config.llm,
            server=config.server,
            modalities=config.modalities,
            load_part=None if self._wrap is None else self._wrap(PartLoader(bundle, precisions, engine)),
        )
