"""Packed questions as prompts of their own, for a server that answers one prompt at a time, and its answers back.

What the graph reads in one pass (`mechm_runtime.llm.questions`) are here two prompts a question: up to where the
emotion is answered, and on to where the cause is. All begin with the conversation, so that a server with a prefix cache
reads it once, and reads only the new lines when the conversation goes on. A prompt of the graph's inputs and one of
these hold the same tokens at the same positions, so both give the same answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mechm_runtime.llm.questions import CONVERSATION, QuestionTokenizer
from mechm_runtime.llm.vllm.embeddings import EmbeddingTable
from mechm_runtime.llm.vllm.tensors import Matrix
from mechm_runtime.system.arrays import log_softmax


def make_prompts(inputs: Mapping[str, npt.NDArray[Any]]) -> list[list[int]]:
    """Token ids of the prompts, emotions first, then causes, both in the order of the questions.

    inputs: what `mechm_runtime.llm.scorer.graph_inputs` made.
    """
    ids = inputs["input_ids"][0]
    return [ids[places].tolist() for places in prompt_places(inputs)]


def make_embedded_prompts(inputs: Mapping[str, npt.NDArray[Any]], embeddings: EmbeddingTable) -> list[Matrix]:
    """The same prompts as embeddings (T, D), with the soft tokens in their places.

    Raises: ValueError: a soft token has another width or is not finite.
    """
    whole = embeddings.embed(inputs["input_ids"][0], inputs["soft_at"], inputs["soft_tokens"])
    return [whole.rows(places) for places in prompt_places(inputs)]


def prompt_places(inputs: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[np.int64]]:
    """Where in the packed sequence the tokens of each prompt are."""
    segments = inputs["segments"][0]
    conversation = np.flatnonzero(segments == CONVERSATION)
    ends = [*inputs["emotion_at"].tolist(), *inputs["cause_at"].tolist()]
    starts = [int(np.argmax(segments == segments[end])) for end in ends]
    return [np.concatenate([conversation, np.arange(start, end + 1)]) for start, end in zip(starts, ends, strict=True)]


def answer_ids(tokenizer: QuestionTokenizer) -> list[int]:
    """Every token that answers some question, each once: what a server is asked the log-probabilities of."""
    return sorted({*tokenizer.emotion_answers.tolist(), *tokenizer.cause_answers.tolist()})


def read_answers(
    log_probabilities: Sequence[Mapping[int, float]], tokenizer: QuestionTokenizer
) -> dict[str, npt.NDArray[np.float32]]:
    """The graph's outputs from a server's log-probabilities.

    log_probabilities: token id -> log-probability over the whole vocabulary, one for each prompt.
    Returns: log-probabilities over the answers alone, by the graph's names.
    Raises: ValueError: an answer is missing, or is no number.
    """
    half = len(log_probabilities) // 2
    return {
        "emotion_log_probabilities": _among(log_probabilities[:half], tokenizer.emotion_answers.tolist()),
        "cause_log_probabilities": _among(log_probabilities[half:], tokenizer.cause_answers.tolist()),
    }


def _among(found: Sequence[Mapping[int, float]], answers: Sequence[int]) -> npt.NDArray[np.float32]:
    if absent := sorted({answer for one in found for answer in answers if answer not in one}):
        raise ValueError(f"no log-probability of the answer {absent[0]}")
    scores = np.array([[one[answer] for answer in answers] for one in found], np.float64).reshape(-1, len(answers))
    if np.isnan(scores).any() or not np.isfinite(scores.max(-1)).all():
        raise ValueError("a log-probability is not a number")
    return log_softmax(scores).astype(np.float32)
