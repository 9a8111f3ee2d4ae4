"""The light runtime: analyse conversations with an exported bundle, without torch."""

from mechm_runtime.pipeline import Pipeline
from mechm_runtime.types import EMOTIONS, MODALITIES, Analysis, Conversation, Pair, Utterance, UtteranceAnalysis

__all__ = ["EMOTIONS", "MODALITIES", "Analysis", "Conversation", "Pair", "Pipeline", "Utterance", "UtteranceAnalysis"]
