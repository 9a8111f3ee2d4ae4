"""The light runtime: analyse conversations with an exported bundle, without torch.

The names below are imported on first use: a command's `--help`, or a program that only wants the error classes, does
not wait for numpy and the tokenizer.
"""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    from mechm_runtime.pipeline import Pipeline
    from mechm_runtime.types import EMOTIONS, MODALITIES, Analysis, Conversation, Pair, Utterance, UtteranceAnalysis

__all__ = ["EMOTIONS", "MODALITIES", "Analysis", "Conversation", "Pair", "Pipeline", "Utterance", "UtteranceAnalysis"]

if not typing.TYPE_CHECKING:  # a checker that saw this function would take any misspelt name for a public one

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module("mechm_runtime.pipeline" if name == "Pipeline" else "mechm_runtime.types"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
