"""Asking the Llama: every utterance with words is asked about once, in windows that see what is around them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mechm_runtime.llama import LlamaReader, graph_inputs
from mechm_runtime.questions import CAUSE_ANSWERS, CONVERSATION, QuestionConfig, QuestionTokenizer
from mechm_runtime.types import EMOTIONS, Utterance


def talk(n: int) -> tuple[Utterance, ...]:
    """Utterances that all differ; every fifth has no words."""
    return tuple(Utterance(i + 1, "AB"[i % 2], None if i % 5 == 4 else f"This is number {i}.") for i in range(n))


class Words:
    """Answers with the sum of a question's tokens, so that an answer tells which question it is to."""

    def __init__(self) -> None:
        self.seen: list[Mapping[str, npt.NDArray[Any]]] = []

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        self.seen.append(inputs)
        segments, ids = inputs["segments"][0], inputs["input_ids"][0]
        sums = np.array([ids[segments == number].sum() for number in range(len(inputs["emotion_at"]))], np.float32)
        emotions = np.repeat(sums[:, None], len(EMOTIONS), 1)
        return {
            "emotion_log_probabilities": emotions,
            "cause_log_probabilities": np.repeat(sums[:, None], len(CAUSE_ANSWERS) + 1, 1),
        }


@pytest.fixture(scope="module")
def tokenizer_json(small_weights: Path) -> Path:
    return small_weights / "llm" / "tokenizer.json"


def test_every_utterance_with_words_is_asked_about_once_whatever_the_windows(tokenizer_json: Path) -> None:
    utterances = talk(60)
    small = QuestionConfig(max_tokens=400, context_before=6, context_after=2)
    tokenizer, whole = QuestionTokenizer(tokenizer_json, small), QuestionTokenizer(tokenizer_json)
    engine = Words()
    scores = LlamaReader(tokenizer, engine).read(utterances)
    assert len(engine.seen) > 1
    assert all(inputs["input_ids"].shape[1] <= small.max_tokens for inputs in engine.seen)
    spoken = np.array([u.text is not None for u in utterances])
    assert scores.asked.tolist() == spoken.tolist()
    # Numbers restart in every window, as in training: the answer is that of the utterance's number there.
    for first, last, core_first, core_last in tokenizer.windows(utterances):
        for position in range(core_first, core_last):
            if spoken[position]:
                alone = whole.pack(utterances[first:last], [position - first])
                expected = alone.input_ids[alone.segments != CONVERSATION].sum()
                assert scores.emotions[position, 0] == scores.causes[position, 0] == expected


@pytest.mark.parametrize("n", [1, 2, 13, 60])
def test_cores_tile_the_conversation_and_causes_are_in_sight(tokenizer_json: Path, n: int) -> None:
    config = QuestionConfig(max_tokens=400, context_before=9, context_after=3)
    spans = QuestionTokenizer(tokenizer_json, config).windows(talk(n))
    assert [position for _, _, first, last in spans for position in range(first, last)] == list(range(n))
    for first, last, core_first, core_last in spans:
        assert first == max(0, core_first - config.context_before)
        assert last == min(n, core_last + config.context_after)


def test_a_conversation_that_fits_is_one_window(tokenizer_json: Path) -> None:
    assert QuestionTokenizer(tokenizer_json).windows(talk(20)) == [(0, 20, 0, 20)]


def test_a_monologue_is_read_in_part_and_named(tokenizer_json: Path) -> None:
    config = QuestionConfig(max_utterance_tokens=40)
    tokenizer = QuestionTokenizer(tokenizer_json, config)
    utterances = (Utterance(1, "A", "word " * 500 + "end"), Utterance(2, "B", "Oh."))
    assert list(LlamaReader(tokenizer, Words()).overlong(utterances)) == [0]
    lines = tokenizer.conversation(utterances)
    assert len(lines[0]) == config.max_utterance_tokens
    assert lines[0][-2:] == QuestionTokenizer(tokenizer_json).conversation(utterances)[0][-2:], "it ends as it ended"
    question, n_first = tokenizer.question(utterances, 0)
    assert n_first == config.max_utterance_tokens
    assert question[-2:] == tokenizer.question(utterances, 1)[0][-2:], "the question still asks"


def test_a_window_holds_one_utterance_at_least(tokenizer_json: Path) -> None:
    tokenizer = QuestionTokenizer(tokenizer_json, QuestionConfig(max_tokens=1, context_before=0, context_after=0))
    assert tokenizer.windows(talk(3)) == [(0, 1, 0, 1), (1, 2, 1, 2), (2, 3, 2, 3)]


def test_progress_ends_with_the_last_utterance(tokenizer_json: Path) -> None:
    reports: list[tuple[int, int]] = []
    reader = LlamaReader(QuestionTokenizer(tokenizer_json, QuestionConfig(max_tokens=300)), Words())
    reader.read(talk(30), lambda done, total: reports.append((done, total)))
    assert reports == sorted(reports)
    assert reports[-1] == (30, 30)


def test_the_graph_takes_a_batch_of_one(tokenizer_json: Path) -> None:
    packed = QuestionTokenizer(tokenizer_json).pack(talk(3), [0, 2])
    inputs = graph_inputs(packed)
    assert (
        inputs["input_ids"].shape
        == inputs["position_ids"].shape
        == inputs["segments"].shape
        == (1, len(packed.segments))
    )
    assert inputs["emotion_at"].shape == inputs["cause_at"].shape == (2,)
