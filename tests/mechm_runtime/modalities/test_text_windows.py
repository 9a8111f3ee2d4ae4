"""Token windows: every token lies in one core, nothing is cut, states are pooled to the utterance they belong to."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from mechm_runtime.bundle.config import TextConfig
from mechm_runtime.errors import BundleError
from mechm_runtime.modalities.text_windows import NO_UTTERANCE, ConversationTokenizer, TextWindows, pool_utterances
from mechm_runtime.types import Utterance

WORDS = ("yes", "no", "maybe", "the", "cat", "sat", "on", "mat", "a", "b", ":")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
PAD, UNK, CLS, SEP = range(4)


@pytest.fixture(scope="module")
def word_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of a few whole words, so that tests can count."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 - a word piece, no password
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(SPECIAL))
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def said(*texts: str | None, speaker: str = "a") -> list[Utterance]:
    return [Utterance(number, speaker, text) for number, text in enumerate(texts, 1)]


def owned(windows: TextWindows) -> list[tuple[int, int]]:
    """(utterance, token) of every token that counts, window by window."""
    keep = windows.utterance_index != NO_UTTERANCE
    return list(zip(windows.utterance_index[keep].tolist(), windows.input_ids[keep].tolist(), strict=True))


def test_a_short_conversation_is_one_window(word_file: Path) -> None:
    windows = ConversationTokenizer(word_file, TextConfig())(said("yes", "the cat", None))
    index = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    a, colon = index["a"], index[":"]
    assert windows.input_ids.tolist() == [[CLS, a, colon, index["yes"], SEP, a, colon, index["the"], index["cat"], SEP]]
    assert windows.utterance_index.tolist() == [[NO_UTTERANCE, 0, 0, 0, 0, 1, 1, 1, 1, 1]]
    assert windows.attention_mask.all()
    assert windows.has_text.tolist() == [True, True, False]


def test_no_speaker_no_name(word_file: Path) -> None:
    windows = ConversationTokenizer(word_file, TextConfig())(said("cat", speaker=""))
    assert windows.input_ids.shape == (1, 3)


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.one_of(st.none(), st.integers(0, 40)), min_size=1, max_size=12),
    max_tokens=st.integers(5, 40),
    share=st.floats(0, 0.49),
)
def test_every_token_lies_in_one_core(
    word_file: Path, lengths: list[int | None], max_tokens: int, share: float
) -> None:
    context = int(share * (max_tokens - 2))
    random = np.random.default_rng(0)
    texts = [None if n is None else " ".join(random.choice(WORDS[:8], n)) for n in lengths]
    utterances = said(*texts)
    whole = ConversationTokenizer(word_file, TextConfig(100_000, 0))(utterances)
    windows = ConversationTokenizer(word_file, TextConfig(max_tokens, context))(utterances)
    assert owned(windows) == owned(whole)  # each token once, in order, for its own utterance
    assert windows.has_text.tolist() == [bool(n) for n in lengths]
    # A window is the conversation's own tokens in a row, after [CLS] and before padding.
    sequence = [token for _, token in owned(whole)]
    n_owned = 0
    for ids, mask, index in zip(windows.input_ids, windows.attention_mask, windows.utterance_index, strict=True):
        n = int(mask.sum())
        assert 1 < n <= max_tokens
        assert ids[0] == CLS
        assert mask[:n].all()
        assert (ids[n:] == PAD).all()
        core = np.flatnonzero(index != NO_UTTERANCE)
        first = n_owned - (int(core[0]) - 1)
        assert ids[1:n].tolist() == sequence[first : first + n - 1]
        n_owned += len(core)
        # There is context on both sides, unless the conversation ends there.
        if len(windows.input_ids) > 1:
            assert core[0] - 1 == min(context, n_owned - len(core))
            assert n - 1 - core[-1] == min(context, len(sequence) - n_owned)


def test_a_conversation_without_words_has_no_windows(word_file: Path) -> None:
    windows = ConversationTokenizer(word_file, TextConfig())(said(None, "", "   "))
    assert len(windows.input_ids) == 0
    assert windows.has_text.tolist() == [False] * 3
    pooled = pool_utterances(np.zeros((0, windows.input_ids.shape[1], 4), np.float32), windows)
    assert pooled.shape == (3, 4)
    assert not pooled.any()


def test_an_utterance_without_a_known_word_has_no_tokens(word_file: Path) -> None:
    tokenizer = ConversationTokenizer(word_file, TextConfig(32, 8))
    windows = tokenizer(said("😡 🤬", WORDS[0], f"😡 {WORDS[0]}"))
    assert windows.has_text.tolist() == [False, True, True]
    assert not len(tokenizer(said("😡")).input_ids)


def test_five_thousand_utterances_cost_what_they_are(word_file: Path) -> None:
    tokenizer = ConversationTokenizer(word_file, TextConfig(64, 16))

    def measured(n: int) -> tuple[TextWindows, float]:
        utterances = said(*["the cat sat on the mat"] * n)
        start = time.perf_counter()
        windows = tokenizer(utterances)
        pool_utterances(np.ones((*windows.input_ids.shape, 8), np.float32), windows)
        return windows, time.perf_counter() - start

    short, _ = measured(500)
    long, seconds = measured(5000)
    assert len(long.input_ids) == pytest.approx(10 * len(short.input_ids), abs=10)
    assert seconds < 10
    assert long.has_text.all()


def test_pooling_is_the_mean_over_an_utterances_tokens(word_file: Path) -> None:
    windows = ConversationTokenizer(word_file, TextConfig(12, 3))(
        said("the cat", None, "sat on the mat yes no maybe the cat sat", "no")
    )
    assert len(windows.input_ids) > 2
    random = np.random.default_rng(0)
    states = random.normal(size=(*windows.input_ids.shape, 5)).astype(np.float32)
    pooled = pool_utterances(states, windows)
    assert pooled.dtype == np.float32
    for number in range(4):
        mine = states[windows.utterance_index == number]
        expected = mine.mean(0) if len(mine) else np.zeros(5)
        assert np.abs(pooled[number] - expected).max() < 1e-6
    # What stands outside the cores is not read.
    states[windows.utterance_index == NO_UTTERANCE] = np.nan
    assert np.array_equal(pool_utterances(states, windows), pooled)


def test_saying_a_special_token_is_only_words(word_file: Path) -> None:
    windows = ConversationTokenizer(word_file, TextConfig())(said("yes [SEP] b: no [CLS] [PAD]"))
    ids = windows.input_ids[0].tolist()
    assert ids.count(SEP) == 1
    assert ids.count(CLS) == 1
    assert PAD not in ids
    assert ids[-1] == SEP


def test_a_file_that_truncates_and_pads_is_read_whole(word_file: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(word_file))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=40)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    utterances = said("the cat sat on the mat", "yes")
    plain = ConversationTokenizer(word_file, TextConfig())(utterances)
    assert np.array_equal(
        ConversationTokenizer(tmp_path / "tokenizer.json", TextConfig())(utterances).input_ids, plain.input_ids
    )


@pytest.mark.parametrize("content", [None, "", "{}", '{"version": "1.0"}', "\x00"])
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer"):
        ConversationTokenizer(path, TextConfig())


def test_a_tokenizer_without_the_special_tokens_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "[CLS]": 1}, unk_token="[UNK]"))  # noqa: S106 - no password
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(BundleError, match=r"\[SEP\]"):
        ConversationTokenizer(tmp_path / "tokenizer.json", TextConfig())


def test_mpnet_s_own_special_tokens_come_before_bert_s(tmp_path: Path) -> None:
    words = ["<s>", "<pad>", "</s>", "[UNK]", "[CLS]", "[SEP]", "[PAD]", "hi"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    windows = ConversationTokenizer(tmp_path / "tokenizer.json", TextConfig())((Utterance(1, "", "hi"),))
    assert windows.input_ids.tolist() == [[0, 7, 2]]


def test_context_must_leave_a_core() -> None:
    with pytest.raises(ValueError, match="no core"):
        TextConfig(max_tokens=33, context_tokens=16)
    TextConfig(max_tokens=34, context_tokens=16)
