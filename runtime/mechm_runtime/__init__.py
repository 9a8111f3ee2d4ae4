"""The light runtime: analyses conversations with an exported bundle, without torch.

This is the public list: programs that use the library import from here and from nowhere below. Each name is loaded on
first use, so that `--help`, or a program that needs the error classes alone, does not wait for numpy and the tokenizer.
"""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    from mechm_runtime.bundle.manifest import Bundle
    from mechm_runtime.bundle.open import open_bundle
    from mechm_runtime.engines.base import EngineConfig
    from mechm_runtime.engines.batching import BatchConfig
    from mechm_runtime.engines.output_cache import CacheConfig
    from mechm_runtime.engines.spec import EngineName
    from mechm_runtime.errors import (
        BundleError,
        InputError,
        LabelError,
        LlmUnavailableError,
        MechmError,
        MediaError,
        MissingExtraError,
        ProviderError,
        TranscriptError,
        VerificationError,
        WeightsError,
    )
    from mechm_runtime.llm.rescoring import Llm
    from mechm_runtime.llm.vllm.config import ServerConfig
    from mechm_runtime.media import MediaLimits, MediaReader, read_segments
    from mechm_runtime.pipeline import Pipeline, PipelineConfig, Precision
    from mechm_runtime.readers import read_labelled, read_transcript
    from mechm_runtime.session.config import SessionConfig
    from mechm_runtime.session.session import Session
    from mechm_runtime.session.update import Revision, SessionUpdate
    from mechm_runtime.types import (
        EMOTIONS,
        MODALITIES,
        Analysis,
        Conversation,
        GoldPair,
        LabelledConversation,
        Pair,
        Utterance,
        UtteranceAnalysis,
    )

__all__ = [
    "EMOTIONS",
    "MODALITIES",
    "Analysis",
    "BatchConfig",
    "Bundle",
    "BundleError",
    "CacheConfig",
    "Conversation",
    "EngineConfig",
    "EngineName",
    "GoldPair",
    "InputError",
    "LabelError",
    "LabelledConversation",
    "Llm",
    "LlmUnavailableError",
    "MechmError",
    "MediaError",
    "MediaLimits",
    "MediaReader",
    "MissingExtraError",
    "Pair",
    "Pipeline",
    "PipelineConfig",
    "Precision",
    "ProviderError",
    "Revision",
    "ServerConfig",
    "Session",
    "SessionConfig",
    "SessionUpdate",
    "TranscriptError",
    "Utterance",
    "UtteranceAnalysis",
    "VerificationError",
    "WeightsError",
    "open_bundle",
    "read_labelled",
    "read_segments",
    "read_transcript",
]

if not typing.TYPE_CHECKING:  # a checker that saw this function would take any misspelt name for a public one
    _MODULES = {
        "Bundle": "bundle.manifest",
        "open_bundle": "bundle.open",
        "EngineName": "engines.spec",
        "EngineConfig": "engines.base",
        "BatchConfig": "engines.batching",
        "CacheConfig": "engines.output_cache",
        "Llm": "llm.rescoring",
        "ServerConfig": "llm.vllm.config",
        **dict.fromkeys(("MediaLimits", "MediaReader", "read_segments"), "media"),
        **dict.fromkeys(("Pipeline", "PipelineConfig", "Precision"), "pipeline"),
        **dict.fromkeys(("read_labelled", "read_transcript"), "readers"),
        "SessionConfig": "session.config",
        "Session": "session.session",
        **dict.fromkeys(("Revision", "SessionUpdate"), "session.update"),
    }
    """The modules of public names that are neither errors nor types."""

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        module = _MODULES.get(name, "errors" if name.endswith("Error") else "types")
        value = getattr(import_module(f"mechm_runtime.{module}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
