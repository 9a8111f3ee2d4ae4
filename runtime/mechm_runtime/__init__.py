"""The light runtime: analyse conversations with an exported bundle, without torch.

The names below are imported on first use: a command's `--help`, or a program that only wants the error classes, does
not wait for numpy and the tokenizer.
"""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    from mechm_runtime.pipeline import Pipeline
    from mechm_runtime.session.config import SessionConfig
    from mechm_runtime.session.session import Session
    from mechm_runtime.session.update import Revision, SessionUpdate
    from mechm_runtime.types import EMOTIONS, MODALITIES, Analysis, Conversation, Pair, Utterance, UtteranceAnalysis

__all__ = [
    "EMOTIONS",
    "MODALITIES",
    "Analysis",
    "Conversation",
    "Pair",
    "Pipeline",
    "Revision",
    "Session",
    "SessionConfig",
    "SessionUpdate",
    "Utterance",
    "UtteranceAnalysis",
]

if not typing.TYPE_CHECKING:  # a checker that saw this function would take any misspelt name for a public one

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        elsewhere = {
            "Pipeline": "pipeline",
            "Revision": "session.update",
            "Session": "session.session",
            "SessionConfig": "session.config",
            "SessionUpdate": "session.update",
        }
        value = getattr(import_module(f"mechm_runtime.{elsewhere.get(name, 'types')}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
