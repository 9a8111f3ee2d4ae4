"""The Llama's prompt: what is packed, what sees what, and how answers become pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mechm_runtime.errors import BundleError
from mechm_runtime.llm.questions import (
    CAUSE_ANSWERS,
    CONVERSATION,
    NO_CAUSE,
    QuestionTokenizer,
    cause_offsets,
    pair_logits,
)
from mechm_runtime.types import EMOTIONS, Utterance

UTTERANCES = (
    Utterance(1, "Ann", "You told her everything?"),
    Utterance(2, "Bob", "I am  so\nsorry."),
    Utterance(3, "", None),
)


def _tokenizer_file(folder: Path, words: tuple[str, ...]) -> Path:
    """A byte-level tokenizer whose only merged tokens are `words`, each with the space before it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    for word in words:
        built = "Ġ"
        for letter in word:
            if (built, letter) not in merges:
                merges.append((built, letter))
            built += letter
            vocabulary.setdefault(built, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    return _tokenizer_file(tmp_path, EMOTIONS)


def test_a_question_ends_where_one_token_answers(tokenizer_file: Path) -> None:
    tokenizer = QuestionTokenizer(tokenizer_file)
    packed = tokenizer.pack(UTTERANCES, [1, 2])
    text = Tokenizer.from_file(str(tokenizer_file)).decode(packed.input_ids.tolist())
    assert text == (
        "[1] Ann: You told her everything?\n[2] Bob: I am so sorry.\n[3] (nothing said)\n"
        "Question: [2] Bob: I am so sorry.\nEmotion:\nCause:"
        "Question: [3] (nothing said)\nEmotion:\nCause:"
    )
    decoder = Tokenizer.from_file(str(tokenizer_file))
    for end, asked in (*((at, "Emotion:") for at in packed.emotion_at), *((at, "Cause:") for at in packed.cause_at)):
        assert decoder.decode(packed.input_ids[: end + 1].tolist()).endswith(asked)
    assert [decoder.decode([answer]) for answer in tokenizer.emotion_answers] == [f" {e}" for e in EMOTIONS]
    assert [decoder.decode([a]) for a in tokenizer.cause_answers] == [*(a for a, _ in CAUSE_ANSWERS), NO_CAUSE]


def test_questions_see_the_conversation_and_themselves_only(tokenizer_file: Path) -> None:
    packed = QuestionTokenizer(tokenizer_file).pack(UTTERANCES, [0, 1])
    visible = packed.attention_mask()
    prefix = np.flatnonzero(packed.segments == CONVERSATION)
    first, second = (np.flatnonzero(packed.segments == number) for number in (0, 1))
    assert visible[np.ix_(second, prefix)].all()
    assert not visible[np.ix_(second, first)].any()
    assert not visible[np.ix_(prefix, first)].any()
    assert np.array_equal(visible[np.ix_(second, second)], np.tril(np.ones((len(second),) * 2, bool)))
    # Every question stands where it would stand alone.
    alone = QuestionTokenizer(tokenizer_file).pack(UTTERANCES, [1])
    assert np.array_equal(packed.position_ids[second], alone.position_ids[len(prefix) :])
    assert np.array_equal(packed.input_ids[second], alone.input_ids[len(prefix) :])


def test_the_next_utterance_keeps_the_prefix(tokenizer_file: Path) -> None:
    tokenizer = QuestionTokenizer(tokenizer_file)
    before, after = tokenizer.pack(UTTERANCES[:2], []), tokenizer.pack(UTTERANCES, [])
    assert np.array_equal(after.input_ids[: len(before.input_ids)], before.input_ids)


def test_pair_logits_put_odds_where_the_distance_points() -> None:
    random = np.random.default_rng(0)
    answers = random.normal(size=(12, len(CAUSE_ANSWERS) + 1)).astype(np.float32)
    logits = pair_logits(answers)
    offsets = cause_offsets().tolist()
    for i in range(12):
        for j in range(12):
            if j - i in offsets:
                assert logits[i, j] == answers[i, offsets.index(j - i)] - answers[i, -1]
            else:
                assert logits[i, j] == -np.inf


def test_pair_logits_are_aligned_with_the_fusion_s_window() -> None:
    random = np.random.default_rng(1)
    n, width = 20, 8
    answers = random.normal(size=(n, len(CAUSE_ANSWERS) + 1)).astype(np.float32)
    whole = pair_logits(answers)
    first = np.clip(np.arange(n) - 3, 0, n - width)
    windowed = pair_logits(answers, first, width)
    assert windowed.shape == (n, width)
    for i in range(n):
        assert np.array_equal(windowed[i], whole[i, first[i] : first[i] + width])


def test_a_tokenizer_that_splits_an_answer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"surprise.*not one token"):
        QuestionTokenizer(_tokenizer_file(tmp_path, EMOTIONS[:-1]))
