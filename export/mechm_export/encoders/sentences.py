"""Sentences as a text encoder's inputs: what int8 is calibrated on, and what text encoders are compared on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mechm.model.transformers_output import quiet_transformers
from mechm_export.graphs.part import ExportPart, Feeds
from mechm_runtime.errors import WeightsError
from mechm_runtime.types import Conversation

BATCH_SENTENCES = 8
MOST_SENTENCES = 512
VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""One of these is in a folder with a tokenizer; without any, transformers makes an empty one that knows no word."""
LONGEST_TOKENS = 128
"""Utterances are shorter; where the encoder's tokens are of one size, that is what they are padded to."""


def sentence_feeds(
    folder: Path, part: ExportPart, vocab_size: int, longest: int, conversations: Sequence[Conversation]
) -> list[Feeds]:
    """Utterances, as they come, as batches of a part's inputs.

    folder: where the tokenizer is. longest: tokens that the encoder has positions for.
    Raises: WeightsError: no tokenizer, or one of another vocabulary.
    """
    batch_axis, tokens_axis = part.inputs[0].axes
    size = batch_axis if isinstance(batch_axis, int) else BATCH_SENTENCES
    fixed = {"padding": "max_length", "max_length": tokens_axis} if isinstance(tokens_axis, int) else {}
    tokenizer = load_tokenizer(folder)
    texts = [text for one in conversations for utterance in one.utterances if (text := (utterance.text or "").strip())]
    texts = texts[:MOST_SENTENCES]
    feeds: list[Feeds] = []
    for start in range(0, len(texts) - size + 1, size):
        options = {"padding": "longest", "max_length": min(longest, LONGEST_TOKENS)} | fixed
        words = tokenizer(texts[start : start + size], truncation=True, return_tensors="np", **options)
        ids = np.asarray(words["input_ids"], np.int64)
        if ids.max() >= vocab_size:
            raise WeightsError(
                f"the tokenizer in {folder} has the id {ids.max()}, and the encoder {vocab_size} words",
                hint="give the tokenizer that the encoder was trained with",
            )
        mask = np.asarray(words["attention_mask"], np.int64) if "attention_mask" in words else np.ones_like(ids)
        known: Feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        feeds.append({tensor.name: known[tensor.name] for tensor in part.inputs})
    return feeds


def load_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer of a folder. Raises: WeightsError: there is none that loads without code of its own."""
    from transformers import AutoTokenizer

    try:
        if not any((folder / name).is_file() for name in VOCABULARIES):
            raise FileNotFoundError(f"none of {', '.join(VOCABULARIES)}")
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers, sentencepiece and transformers each have errors of their own
        raise WeightsError(
            f"{folder} has no tokenizer that loads, and int8 of a text encoder is calibrated on words",
            hint="put its tokenizer.json there, or leave int8 out",
        ) from error
