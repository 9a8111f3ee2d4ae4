"""Asking the Llama: every utterance with words is asked about once, in windows that see what is around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tokenizers import Tokenizer

from mechm_runtime.bundle.config import QuestionConfig
from mechm_runtime.llm.questions import CAUSE_ANSWERS, CONVERSATION, QuestionTokenizer
from mechm_runtime.llm.scorer import LlamaScorer, SoftTokens, graph_inputs
from mechm_runtime.types import EMOTIONS, Utterance

WIDTH = 8
"""Of the Llama's embeddings."""


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
    scores = LlamaScorer(tokenizer, engine, WIDTH).score(utterances)
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
    assert list(LlamaScorer(tokenizer, Words(), WIDTH).overlong(utterances)) == [0]
    lines = tokenizer.conversation(utterances)
    assert len(lines[0].ids) == config.max_utterance_tokens
    whole = QuestionTokenizer(tokenizer_json).conversation(utterances)
    assert lines[0].ids[-2:] == whole[0].ids[-2:], "it ends as it ended"
    question = tokenizer.question(utterances, 0)
    assert len(question.ids) == config.max_utterance_tokens
    assert question.ids[-2:] == tokenizer.question(utterances, 1).ids[-2:], "the question still asks"


def test_a_window_holds_one_utterance_at_least(tokenizer_json: Path) -> None:
    tokenizer = QuestionTokenizer(tokenizer_json, QuestionConfig(max_tokens=1, context_before=0, context_after=0))
    assert tokenizer.windows(talk(3)) == [(0, 1, 0, 1), (1, 2, 1, 2), (2, 3, 2, 3)]


def test_progress_ends_with_the_last_utterance(tokenizer_json: Path) -> None:
    reports: list[tuple[int, int]] = []
    scorer = LlamaScorer(QuestionTokenizer(tokenizer_json, QuestionConfig(max_tokens=300)), Words(), WIDTH)
    scorer.score(talk(30), progress=lambda done, total: reports.append((done, total)))
    assert reports == sorted(reports)
    assert reports[-1] == (30, 30)


def test_the_graph_takes_a_batch_of_one(tokenizer_json: Path) -> None:
    packed = QuestionTokenizer(tokenizer_json).pack(talk(3), [0, 2])
    inputs = graph_inputs(packed, np.zeros((3, 0, WIDTH), np.float32))
    assert (
        inputs["input_ids"].shape
        == inputs["position_ids"].shape
        == inputs["segments"].shape
        == (1, len(packed.segments))
    )
    assert inputs["emotion_at"].shape == inputs["cause_at"].shape == (2,)
    assert inputs["soft_tokens"].shape == (0, WIDTH)
    assert inputs["soft_at"].shape == (0,)


@pytest.mark.parametrize("max_tokens", [2048, 400])
def test_soft_tokens_stand_behind_their_words(tokenizer_json: Path, max_tokens: int) -> None:
    utterances = talk(24)
    config = QuestionConfig(max_tokens=max_tokens, context_before=6, context_after=2, soft_tokens=2)
    tokenizer, engine = QuestionTokenizer(tokenizer_json, config), Words()
    numbers = np.arange(24 * 2, dtype=np.float32)
    soft = SoftTokens(np.repeat(numbers.reshape(24, 2, 1), WIDTH, 2), np.arange(24) % 3 == 0)
    LlamaScorer(tokenizer, engine, WIDTH).score(utterances, soft)
    assert (len(engine.seen) > 1) == (max_tokens == 400)
    decoder = Tokenizer.from_file(str(tokenizer_json))
    for inputs in engine.seen:
        assert inputs["input_ids"].shape[1] <= config.max_tokens
        ids, at = inputs["input_ids"][0], inputs["soft_at"]
        of = inputs["soft_tokens"][:, 0].astype(int)
        assert len(of) == len(at) > 0
        for position, number in zip(at[::2], of[::2], strict=True):
            words = decoder.decode([int(ids[i]) for i in range(position) if i not in at])
            said = utterances[number // 2].text or "(nothing said)"
            assert words.endswith(said), "what is told is of the utterance before it"
            assert decoder.decode([int(ids[position + 2])]) == "\n"
        assert (at[1::2] == at[::2] + 1).all()
        assert (of[1::2] == of[::2] + 1).all()


def test_words_alone_are_asked_as_without_soft_tokens(tokenizer_json: Path) -> None:
    with_room = QuestionTokenizer(tokenizer_json, QuestionConfig(soft_tokens=2))
    plain = QuestionTokenizer(tokenizer_json)
    one, other = with_room.pack(talk(6), [0, 3], [False] * 6), plain.pack(talk(6), [0, 3])
    for field in fields(one):
        assert np.array_equal(getattr(one, field.name), getattr(other, field.name))
    assert with_room.pack(talk(6), [0, 3], [False, True] + [False] * 4).soft_of.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("soft", "message"),
    [
        (SoftTokens(np.zeros((3, 2, 5), np.float32), np.ones(3, bool)), "not"),
        (SoftTokens(np.zeros((2, 2, 8), np.float32), np.ones(2, bool)), "not"),
        (SoftTokens(np.full((3, 2, 8), np.nan, np.float32), np.ones(3, bool)), "not finite"),
    ],
)
def test_soft_tokens_that_do_not_fit_are_refused(tokenizer_json: Path, soft: SoftTokens, message: str) -> None:
    scorer = LlamaScorer(QuestionTokenizer(tokenizer_json, QuestionConfig(soft_tokens=2)), Words(), WIDTH)
    with pytest.raises(ValueError, match=message):
        scorer.score(talk(3), soft)
