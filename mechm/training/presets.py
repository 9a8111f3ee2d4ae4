"""A preset's text encoder weights and tokenizer, as every training reads them."""

from __future__ import annotations

from pathlib import Path

from mechm.model.config import ModelConfig
from mechm.weights import weights_path
from mechm_runtime.bundle.config import TextConfig
from mechm_runtime.modalities.text_windows import ConversationTokenizer


def text_weights(config: ModelConfig) -> Path | None:
    """Folder of a preset's pretrained text encoder; None for `tiny`, whose encoder is random.

    Raises: WeightsError: the base weights are missing.
    """
    return None if config.preset == "tiny" else weights_path("text", config.preset)


def text_tokenizer(config: ModelConfig) -> ConversationTokenizer:
    """Tokenizer of a preset's conversation windows; `tiny` takes that of `small`.

    Raises: WeightsError: the base weights are missing.
    """
    folder = weights_path("text", "small" if config.preset == "tiny" else config.preset)
    max_tokens = config.text.max_tokens
    return ConversationTokenizer(folder / "tokenizer.json", TextConfig(max_tokens, max_tokens // 4))
