"""The Llama as parts of a bundle: a prefill-only graph for many questions per pass, and its soft tokens' projector.

The adapter is merged into the base here, in memory and in fp32. The combination of its scores with the fusion's
(`combination.json`) was fitted for certain fusion weights; others are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mechm.llm.combination import FittedCombination, read_combination
from mechm.llm.packed import PackedLlama
from mechm.llm.scorer import AnswerScores, load_merged
from mechm.llm.stored_projector import has_projector, load_projector
from mechm.model.projector import SoftTokenProjector
from mechm.model.transformers_output import quiet_transformers
from mechm_export.graphs.part import WEIGHT_ONLY_INT8, ExportPart, Feeds, Int8Recipe
from mechm_export.llama.graph import write_llama_graph
from mechm_runtime.bundle.config import QuestionConfig
from mechm_runtime.bundle.manifest import LLAMA, PROJECTOR, Tensor
from mechm_runtime.llm.questions import CAUSE_ANSWERS, CONVERSATION, QuestionTokenizer
from mechm_runtime.llm.scorer import graph_inputs
from mechm_runtime.types import EMOTIONS, Conversation


@dataclass(frozen=True, slots=True)
class LlamaSource:
    """Weights and settings from which the Llama's parts are made.

    scores: the merged Llama, fp32, in eval mode. tokenizer: its tokenizer file. adapter: the adapter's folder.
    projector: computes its soft tokens; None where it reads words only.
    """

    scores: AnswerScores
    tokenizer: Path
    questions: QuestionConfig
    fitted: FittedCombination
    adapter: Path
    projector: SoftTokenProjector | None


def llama_parts(source: LlamaSource) -> tuple[ExportPart, ...]:
    """Describe the Llama's part, and before it its projector's where it has one."""
    if source.projector is None:
        return (_llama_part(source),)
    return _projector_part(source.projector), _llama_part(source)


def _projector_part(projector: SoftTokenProjector) -> ExportPart:
    config = projector.config
    return ExportPart(
        PROJECTOR,
        projector,
        (
            Tensor("hidden_states", "float32", ("utterances", config.state_size)),
            Tensor("emotion_logits", "float32", ("utterances", config.n_emotions)),
        ),
        (Tensor("soft_tokens", "float32", ("utterances", config.n_tokens, config.hidden_size)),),
        ({"utterances": 7}, {"utterances": 1}, {"utterances": 40}),
    )


def _llama_part(source: LlamaSource) -> ExportPart:
    tokens = (1, "tokens")
    hidden_size = source.scores.hidden_size
    vocabulary = source.scores.causal.config.vocab_size
    module = PackedLlama(source.scores).eval()
    n_layers, n_key_heads, _, head_dim = module.nothing_read().shape

    def packed(sizes: Mapping[str, int], random: np.random.Generator) -> Feeds:
        """Random tokens: a conversation, then questions of equal length on it; some are soft tokens."""
        n_tokens, n_questions, n_soft, n_past = (sizes[name] for name in ("tokens", "questions", "soft", "past"))
        length = max(2, n_tokens // (2 * n_questions))
        prefix = n_tokens - length * n_questions
        segments = np.concatenate([np.full(prefix, CONVERSATION), np.repeat(np.arange(n_questions), length)])
        positions = n_past + np.concatenate([np.arange(prefix), np.tile(prefix + np.arange(length), n_questions)])
        ends = prefix + length * np.arange(1, n_questions + 1) - 1
        return {
            "input_ids": random.integers(0, vocabulary, (1, n_tokens)),
            "position_ids": positions[None],
            "segments": segments[None],
            "emotion_at": ends - 1,
            "cause_at": ends,
            "soft_tokens": random.normal(0.0, 0.1, (n_soft, hidden_size)).astype(np.float32),
            "soft_at": random.permutation(n_tokens)[:n_soft],
            "past": random.normal(0.0, 1.0, (n_layers, n_key_heads, n_past, head_dim)).astype(np.float16),
        }

    return ExportPart(
        LLAMA,
        module,
        (
            *(Tensor(name, "int64", tokens) for name in ("input_ids", "position_ids", "segments")),
            Tensor("emotion_at", "int64", ("questions",)),
            Tensor("cause_at", "int64", ("questions",)),
            Tensor("soft_tokens", "float32", ("soft", hidden_size)),
            Tensor("soft_at", "int64", ("soft",)),
            Tensor("past", "float16", (n_layers, n_key_heads, "past", head_dim)),
        ),
        (
            Tensor("emotion_log_probabilities", "float32", ("questions", len(EMOTIONS))),
            Tensor("cause_log_probabilities", "float32", ("questions", len(CAUSE_ANSWERS) + 1)),
            Tensor("present", "float16", (n_layers, n_key_heads, "read", head_dim)),
        ),
        tuple(
            {"tokens": tokens, "questions": questions, "soft": soft, "past": past}
            for tokens, questions, soft, past in ((40, 3, 6, 0), (12, 1, 0, 1), (300, 10, 40, 0), (25, 1, 2, 200))
        ),
        int8=Int8Recipe(portable=WEIGHT_ONLY_INT8),
        make_inputs=packed,
        write=partial(write_llama_graph, positions=source.questions.max_tokens),
    )


def question_inputs(source: LlamaSource, conversations: Sequence[Conversation]) -> list[Feeds]:
    """The graph's inputs for every question on the first window of each conversation, without soft tokens."""
    tokenizer = QuestionTokenizer(source.tokenizer, source.questions)
    inputs = []
    for one in conversations:
        (first, last, *_), *_ = tokenizer.windows(one.utterances)
        packed = tokenizer.pack(one.utterances[first:last], range(last - first))
        no_soft_tokens = np.zeros((last - first, source.questions.soft_tokens, source.scores.hidden_size), np.float32)
        inputs.append(graph_inputs(packed, no_soft_tokens))
    return inputs


def load_llama_source(base: Path, adapter: Path, fusion: Path) -> LlamaSource:
    """Merge a trained adapter into its base.

    base: the base language model's folder. fusion: the trained fusion weights of the bundle.
    Raises: WeightsError: base weights or files of the adapter are missing, or its combination was fitted to other
        fusion weights.
    """
    fitted = read_combination(adapter, fusion)
    projector = load_projector(adapter, fusion) if has_projector(adapter) else None
    tokenizer = base / "tokenizer.json"
    questions = QuestionConfig(soft_tokens=0 if projector is None else projector.config.n_tokens)
    with quiet_transformers():
        scores = AnswerScores(load_merged(base, adapter), QuestionTokenizer(tokenizer, questions)).eval()
    return LlamaSource(scores, tokenizer, questions, fitted, adapter, projector)
