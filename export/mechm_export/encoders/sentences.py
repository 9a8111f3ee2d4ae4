"""Sentences as a text encoder's inputs, and how a sentence's vector is made.

int8 of a text encoder is calibrated on sentences and compared with torch on them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mechm.model.transformers_output import quiet_transformers
from mechm_export.encoders.modules import Pooling
from mechm_export.graphs.part import ExportPart, Feeds
from mechm_runtime.errors import WeightsError
from mechm_runtime.types import Conversation

MODULES = "modules.json"
"""Where sentence-transformers says what follows the encoder."""
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


def sentence_pooling(folder: Path) -> tuple[Pooling, bool]:
    """Pooling of sentence-transformers, and whether a sentence's vector is scaled to length 1.

    A folder without `modules.json` gets the mean, not normalised.
    Raises: WeightsError: a module or pooling that is not exported, or a damaged file.
    """
    if not (folder / MODULES).is_file():
        return "mean", False
    try:
        modules = json.loads((folder / MODULES).read_text(encoding="utf-8"))
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
        if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
            raise WeightsError(
                f"{folder} goes through {', '.join(kinds)}; exported are a pooling and a normalisation",
                hint="--task feature-extraction exports the encoder alone",
            )
        config = json.loads((folder / Path(modules[1]["path"]).name / "config.json").read_text(encoding="utf-8"))
        mode = config.get("pooling_mode")
        prefix = "pooling_mode_"
        asked = [mode] if mode else [key.removeprefix(prefix) for key, on in config.items() if prefix in key and on]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(f"{folder}: {MODULES} or the pooling's config is damaged: {error}") from error
    known: dict[str, Pooling] = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls"}
    if len(asked) != 1 or asked[0] not in known:
        raise WeightsError(
            f"{folder} pools by {', '.join(map(str, asked))}; exported are mean and cls",
            hint="--task feature-extraction exports the encoder alone",
        )
    return known[asked[0]], "Normalize" in kinds
