"""The Llama as a part of a bundle: one graph, prefill only, many questions in a pass.

The adapter is merged into the base here, in memory and in fp32. What its scores mean beside the fusion's
(`combination.json`) was fitted for certain fusion weights, so others are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mechm.llm.combination import FittedCombination, read_combination
from mechm.llm.packed import PackedLlama
from mechm.llm.scorer import AnswerScores, load_llama
from mechm_export.part import ExportPart, Feeds
from mechm_export.quantize import Int8Recipe
from mechm_runtime.bundle import LLAMA, Tensor
from mechm_runtime.questions import CAUSE_ANSWERS, CONVERSATION, QuestionConfig, QuestionTokenizer
from mechm_runtime.types import EMOTIONS


@dataclass(frozen=True, slots=True)
class LlamaSource:
    """What the Llama's part is made from.

    scores: the merged Llama, fp32, in eval mode. tokenizer: its tokenizer file. adapter: the adapter's folder.
    """

    scores: AnswerScores
    tokenizer: Path
    questions: QuestionConfig
    fitted: FittedCombination
    adapter: Path


def llama_part(source: LlamaSource) -> ExportPart:
    """The Llama's graph: inputs, outputs and sizes to try."""
    tokens = (1, "tokens")
    vocabulary = source.scores.causal.config.vocab_size

    def packed(sizes: Mapping[str, int], random: np.random.Generator) -> Feeds:
        """Random words: a conversation, then questions of equal length on it."""
        n_tokens, n_questions = sizes["tokens"], sizes["questions"]
        length = max(2, n_tokens // (2 * n_questions))
        prefix = n_tokens - length * n_questions
        segments = np.concatenate([np.full(prefix, CONVERSATION), np.repeat(np.arange(n_questions), length)])
        positions = np.concatenate([np.arange(prefix), np.tile(prefix + np.arange(length), n_questions)])
        ends = prefix + length * np.arange(1, n_questions + 1) - 1
        return {
            "input_ids": random.integers(0, vocabulary, (1, n_tokens)),
            "position_ids": positions[None],
            "segments": segments[None],
            "emotion_at": ends - 1,
            "cause_at": ends,
        }

    return ExportPart(
        LLAMA,
        PackedLlama(source.scores).eval(),
        (
            *(Tensor(name, "int64", tokens) for name in ("input_ids", "position_ids", "segments")),
            Tensor("emotion_at", "int64", ("questions",)),
            Tensor("cause_at", "int64", ("questions",)),
        ),
        (
            Tensor("emotion_log_probabilities", "float32", ("questions", len(EMOTIONS))),
            Tensor("cause_log_probabilities", "float32", ("questions", len(CAUSE_ANSWERS) + 1)),
        ),
        tuple({"tokens": tokens, "questions": questions} for tokens, questions in ((40, 3), (12, 1), (300, 10))),
        # Outlier channels into the down projections: with those in int8 no label survived (DESIGN.md section 5).
        int8=Int8Recipe(keep_down_projections=True, embeddings=True),
        make_inputs=packed,
    )


def load_llama_source(base: Path, adapter: Path, fusion: Path) -> LlamaSource:
    """Merge a trained adapter into its base.

    base: the base language model's folder. fusion: the trained fusion weights that the bundle will have.
    Raises: WeightsError: base weights or files of the adapter are missing, or its combination was fitted to another
        fusion.
    """
    from peft import PeftModel

    fitted = read_combination(adapter, fusion)
    tokenizer = base / "tokenizer.json"
    questions = QuestionConfig()
    merged = PeftModel.from_pretrained(load_llama(base, torch.float32), adapter).merge_and_unload()
    scores = AnswerScores(merged, QuestionTokenizer(tokenizer, questions)).eval()
    return LlamaSource(scores, tokenizer, questions, fitted, adapter)
