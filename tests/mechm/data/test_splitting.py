"""Long conversations in pieces: every utterance once, cut where no cause crosses, pairs that are lost counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mechm.data.batches import group_by_size, make_batch
from mechm.data.splitting import split_long
from mechm_runtime.bundle.config import TextConfig
from mechm_runtime.modalities.text_windows import ConversationTokenizer
from mechm_runtime.types import EMOTIONS, Conversation, GoldPair, LabelledConversation, Utterance


def long_conversation(n: int, *pairs: tuple[int, int], seed: int = 0) -> LabelledConversation:
    """Ids are every third number; pairs are given by position."""
    emotions = tuple(EMOTIONS[i] for i in np.random.default_rng(seed).integers(1, len(EMOTIONS), n))
    utterances = tuple(Utterance(3 * i + 1, "AB"[i % 2], f"Line {i} .", float(i), i + 1.0) for i in range(n))
    gold = frozenset(GoldPair(3 * i + 1, emotions[i], 3 * j + 1) for i, j in pairs)
    return LabelledConversation(Conversation("long", utterances, Path("film.mp4")), emotions, gold)


def test_short_conversations_stay_what_they_are() -> None:
    one = long_conversation(64, (3, 2))
    pieces = split_long([one], 64)
    assert pieces.conversations == (one,)
    assert (pieces.n_split, pieces.n_crossing) == (0, 0)
    assert split_long([], 64).conversations == ()


@pytest.mark.parametrize("n", [65, 128, 129, 200, 1000])
def test_every_utterance_is_in_one_piece_in_order(n: int) -> None:
    near = [(i, max(0, i - k)) for i, k in enumerate(np.random.default_rng(n).integers(0, 3, n).tolist())]
    one = long_conversation(n, *near)
    pieces = split_long([one], 64)
    parts = pieces.conversations
    assert tuple(u for part in parts for u in part.conversation.utterances) == one.conversation.utterances
    assert tuple(e for part in parts for e in part.emotions) == one.emotions
    assert all(len(part.emotions) <= 64 for part in parts)
    assert all(len(part.emotions) >= 32 for part in parts[:-1])
    assert len({part.conversation.id for part in parts}) == len(parts)
    assert all(part.conversation.media == one.conversation.media for part in parts)
    assert pieces.n_split == 1
    # Most positions are free of crossing pairs here, so none is lost.
    assert frozenset().union(*(part.pairs for part in parts)) == one.pairs
    assert pieces.n_crossing == 0


def test_a_cut_parts_as_few_pairs_as_possible_and_counts_them() -> None:
    # A pair over every place of the first window, and one more over all but place 40.
    one = long_conversation(100, (99, 0), (39, 0), (99, 40))
    pieces = split_long([one], 64)
    assert [len(part.emotions) for part in pieces.conversations] == [40, 60]
    assert pieces.n_crossing == 1
    assert pieces.conversations[1].pairs == {GoldPair(298, one.emotions[99], 121)}


def test_two_hundred_utterances_are_learnt_in_bounded_batches(tokenizer_file: Path) -> None:
    tokenizer = ConversationTokenizer(tokenizer_file, TextConfig(64, 16))
    one = long_conversation(200, *((i, i) for i in range(200)))
    batches = [make_batch(group, tokenizer) for group in group_by_size(split_long([one], 64).conversations, 1400)]
    assert sum(int(batch.utterance_mask.sum()) for batch in batches) == 200
    assert sum(int(batch.text_mask.sum()) for batch in batches) == 200
    assert sum(int(batch.causes.sum()) for batch in batches) == 200
    assert max(batch.utterance_mask.shape[1] for batch in batches) <= 64
