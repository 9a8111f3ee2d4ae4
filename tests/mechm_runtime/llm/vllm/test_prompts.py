"""Prompts for a server hold what the packed graph sees, and its answers become what the graph returns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mechm_runtime.bundle.config import QuestionConfig
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.llm.scorer import graph_inputs
from mechm_runtime.llm.vllm.embeddings import EMBEDDINGS, WEIGHTS, EmbeddingTable
from mechm_runtime.llm.vllm.prompts import answer_ids, make_embedded_prompts, make_prompts, read_answers
from mechm_runtime.types import Utterance

TALK = tuple(Utterance(i + 1, "AB"[i % 2], f"This is number {i}, and it is the longest so far.") for i in range(6))


@pytest.fixture(scope="module")
def tokenizer(small_weights: Path) -> QuestionTokenizer:
    return QuestionTokenizer(small_weights / "llm" / "tokenizer.json")


@pytest.mark.parametrize("asked", [[0, 2, 5], [3], []])
def test_a_prompt_is_what_its_answers_place_sees_in_the_packed_pass(
    tokenizer: QuestionTokenizer, asked: list[int]
) -> None:
    packed = tokenizer.pack(TALK, asked)
    prompts = make_prompts(graph_inputs(packed, np.zeros((6, 0, 8), np.float32)))
    visible = packed.attention_mask()
    ends = [*packed.emotion_at, *packed.cause_at]
    assert prompts == [packed.input_ids[visible[end]].tolist() for end in ends]
    for prompt, end in zip(prompts, ends, strict=True):
        assert len(prompt) == packed.position_ids[end] + 1
    assert len(prompts) == 2 * len(asked)


def test_an_embedded_prompt_is_its_words_rows_with_the_soft_tokens_in_their_places(
    small_weights: Path, tmp_path: Path
) -> None:
    tokenizer = QuestionTokenizer(small_weights / "llm" / "tokenizer.json", QuestionConfig(soft_tokens=2))
    packed = tokenizer.pack(TALK, [1, 4], [False, True, False, False, False, False])
    random = np.random.default_rng(0)
    rows = random.normal(size=(int(packed.input_ids.max()) + 1, 4)).astype(np.float32)
    save_file({EMBEDDINGS: rows}, tmp_path / WEIGHTS)
    soft = random.normal(size=(6, 2, 4)).astype(np.float32)
    inputs = graph_inputs(packed, soft)
    prompts, embedded = make_prompts(inputs), make_embedded_prompts(inputs, EmbeddingTable(tmp_path))
    places = [packed.attention_mask()[end].nonzero()[0] for end in [*packed.emotion_at, *packed.cause_at]]
    whole = rows[packed.input_ids]
    whole[packed.soft_at] = soft[1][[0, 1, 0, 1]]  # in the conversation, and in the question on it
    assert len(prompts) == len(embedded) == 4
    for one, ids, seen in zip(embedded, prompts, places, strict=True):
        assert len(ids) == len(seen)
        np.testing.assert_array_equal(one.values, whole[seen])


def test_answers_are_probabilities_among_the_answers_alone(tokenizer: QuestionTokenizer) -> None:
    random = np.random.default_rng(0)
    ids = answer_ids(tokenizer)
    assert len(ids) == len(set(ids)) == 7 + 14
    found = [dict(zip(ids, random.normal(-8, 3, len(ids)).tolist(), strict=True)) for _ in range(6)]
    outputs = read_answers(found, tokenizer)
    emotions, causes = outputs["emotion_log_probabilities"], outputs["cause_log_probabilities"]
    assert (emotions.shape, causes.shape) == ((3, 7), (3, 14))
    np.testing.assert_allclose(np.exp(emotions).sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.exp(causes).sum(-1), 1, rtol=1e-5)
    joy, neutral = tokenizer.emotion_answers[4], tokenizer.emotion_answers[0]
    np.testing.assert_allclose(emotions[1, 4] - emotions[1, 0], found[1][joy] - found[1][neutral], rtol=1e-4)
    nothing = read_answers([], tokenizer)
    assert [value.shape for value in nothing.values()] == [(0, 7), (0, 14)]


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), float("inf")])
def test_what_is_no_probability_is_refused(tokenizer: QuestionTokenizer, value: float) -> None:
    good = dict.fromkeys(answer_ids(tokenizer), -1.0)
    with pytest.raises(ValueError, match="not a number"):
        read_answers([dict.fromkeys(good, value), good], tokenizer)
    with pytest.raises(ValueError, match="no log-probability of the answer"):
        read_answers([good, dict.fromkeys(list(good)[1:], -1.0)], tokenizer)


def test_an_answer_without_any_probability_is_only_the_last(tokenizer: QuestionTokenizer) -> None:
    ids = answer_ids(tokenizer)
    unlikely = {**dict.fromkeys(ids, -1.0), int(tokenizer.emotion_answers[3]): float("-inf")}
    emotions = read_answers([unlikely, dict.fromkeys(ids, -1.0)], tokenizer)["emotion_log_probabilities"]
    assert np.isneginf(emotions[0, 3])
    np.testing.assert_allclose(np.exp(emotions[0]).sum(), 1, rtol=1e-5)
