"""Converts packed questions into prompts for vLLM, which answers one prompt at a time, and converts its answers back.

The graph reads all questions in one pass (`mechm_runtime.llm.questions`); vLLM gets two prompts per question: one up to
the answer for the emotion, and one up to the answer for the cause. All begin with the conversation, so that a server
with a prefix cache reads it once, and reads only the new lines when the conversation goes on. Each prompt holds the
same tokens at the same positions as the graph's inputs, so both give the same answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mechm_runtime.llm.questions import CONVERSATION, QuestionTokenizer
from mechm_runtime.llm.vllm.embeddings import EmbeddingTable
from mechm_runtime.llm.vllm.tensors import Matrix
from mechm_runtime.system.arrays import Arrays, Float32Array, Int64Array, log_softmax


def make_prompts(inputs: Arrays) -> list[list[int]]:
    """Token ids of the prompts, emotions first, then causes, both in the order of the questions.

    inputs: as from `mechm_runtime.llm.scorer.graph_inputs`.
    """
    ids = inputs["input_ids"][0]
    return [ids[positions].tolist() for positions in prompt_positions(inputs)]


def make_embedded_prompts(inputs: Arrays, embeddings: EmbeddingTable) -> list[Matrix]:
    """The prompts of `make_prompts` as embeddings (T, D), with the soft tokens in their places.

    Raises: ValueError: a soft token has another width or is not finite.
    """
    whole = embeddings.embed(inputs["input_ids"][0], inputs["soft_at"], inputs["soft_tokens"])
    return [whole.rows(positions) for positions in prompt_positions(inputs)]


def prompt_positions(inputs: Arrays) -> list[Int64Array]:
    """Positions in the packed sequence of the tokens of each prompt, int64 (tokens,) each."""
    segments = inputs["segments"][0]
    conversation = np.flatnonzero(segments == CONVERSATION)
    ends = [*inputs["emotion_at"].tolist(), *inputs["cause_at"].tolist()]
    starts = [int(np.argmax(segments == segments[end])) for end in ends]
    return [np.concatenate([conversation, np.arange(start, end + 1)]) for start, end in zip(starts, ends, strict=True)]


def answer_ids(tokenizer: QuestionTokenizer) -> list[int]:
    """The distinct tokens of all answers to both questions, whose log-probabilities are requested."""
    return sorted({*tokenizer.emotion_answers.tolist(), *tokenizer.cause_answers.tolist()})


def read_answers(
    log_probabilities: Sequence[Mapping[int, float]], tokenizer: QuestionTokenizer
) -> dict[str, Float32Array]:
    """Outputs of the Llama's graph from a server's log-probabilities.

    log_probabilities: for each prompt token id -> log-probability over the whole vocabulary.
    Returns: float32 (questions, answers) log-probabilities over the answers alone, by the graph's names.
    Raises: ValueError: an answer is missing, or is no number.
    """
    half = len(log_probabilities) // 2
    return {
        "emotion_log_probabilities": _renormalised(log_probabilities[:half], tokenizer.emotion_answers.tolist()),
        "cause_log_probabilities": _renormalised(log_probabilities[half:], tokenizer.cause_answers.tolist()),
    }


def _renormalised(found: Sequence[Mapping[int, float]], answers: Sequence[int]) -> Float32Array:
    """Log-probabilities over the answers alone, float32 (prompts, answers).

    Raises: ValueError: an answer is missing, or is no number.
    """
    if absent := sorted({answer for one in found for answer in answers if answer not in one}):
        raise ValueError(f"no log-probability of the answer {absent[0]}")
    scores = np.array([[one[answer] for answer in answers] for one in found], np.float64).reshape(-1, len(answers))
    if np.isnan(scores).any() or not np.isfinite(scores.max(-1)).all():
        raise ValueError("a log-probability is not a number")
    return log_softmax(scores).astype(np.float32)
