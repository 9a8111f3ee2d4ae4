"""Batches: every token counts for its utterance, targets lie where the annotation says, groups hold everything once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from mechm.data.batches import group_by_size, make_batch
from mechm.model.inputs import IGNORED, TextBatch
from mechm_export.check_data import check_conversations
from mechm_runtime.bundle.config import TextConfig
from mechm_runtime.modalities.text_windows import ConversationTokenizer
from mechm_runtime.types import EMOTIONS, Conversation, GoldPair, LabelledConversation, Utterance

CONVERSATIONS = check_conversations()


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file: Path) -> ConversationTokenizer:
    return ConversationTokenizer(tokenizer_file, TextConfig(64, 16))


@pytest.fixture(scope="module")
def batch(tokenizer: ConversationTokenizer) -> TextBatch:
    return make_batch(CONVERSATIONS, tokenizer)


def labelled(name: str, turns: list[tuple[str, str | None, str]], *pairs: GoldPair) -> LabelledConversation:
    utterances = tuple(Utterance(3 * i + 2, speaker, text) for i, (speaker, text, _) in enumerate(turns))
    return LabelledConversation(
        Conversation(name, utterances), tuple(emotion for _, _, emotion in turns), frozenset(pairs)
    )


def test_every_token_counts_for_its_utterance(batch: TextBatch, tokenizer_file: Path) -> None:
    pieces = Tokenizer.from_file(str(tokenizer_file))
    n_slots = batch.text_mask.numel()
    n_utterances = batch.text_mask.shape[1]
    owned = batch.token_utterance != n_slots
    assert (batch.attention_mask[owned] == 1).all()
    for b, conversation in enumerate(CONVERSATIONS):
        for i, utterance in enumerate(conversation.conversation.utterances):
            ids = batch.input_ids[batch.token_utterance == b * n_utterances + i].tolist()
            said = f"{utterance.speaker}: {utterance.text}"
            assert ids == [*pieces.encode(said, add_special_tokens=False).ids, pieces.token_to_id("[SEP]")]


def test_targets_lie_where_the_annotation_says(batch: TextBatch) -> None:
    for b, conversation in enumerate(CONVERSATIONS):
        n = len(conversation.emotions)
        assert [EMOTIONS[label] for label in batch.emotions[b, :n]] == list(conversation.emotions)
        assert (batch.emotions[b, n:] == IGNORED).all()
        assert batch.utterance_mask[b].sum() == n
        found = {(i + 1, j + 1) for i, j in batch.causes[b].nonzero().tolist()}
        assert found == {(pair.emotion_utterance, pair.cause_utterance) for pair in conversation.pairs}
        emotional = torch.tensor([emotion != "neutral" for emotion in conversation.emotions])
        assert torch.equal(batch.cause_mask[b, :n, :n], emotional[:, None].expand(n, n))
        assert not batch.cause_mask[b, n:].any()
        assert not batch.cause_mask[b, :, n:].any()


def test_ids_are_not_positions(tokenizer: ConversationTokenizer) -> None:
    pair = GoldPair(8, "joy", 2)
    turns = [("A", "Hello", "neutral"), ("B", None, "neutral"), ("A", "Great!", "joy")]
    batch = make_batch([labelled("x", turns, pair)], tokenizer)
    assert batch.causes.nonzero().tolist() == [[0, 2, 0]]
    assert batch.text_mask.tolist() == [[True, False, True]]
    assert batch.speaker_ids.tolist() == [[0, 1, 0]]


def test_causes_count_only_where_they_are_annotated(tokenizer: ConversationTokenizer) -> None:
    comment = labelled("comment", [("", "Great!", "joy")])
    batch = make_batch([comment, CONVERSATIONS[0]], tokenizer)
    assert not batch.cause_mask[0].any()
    assert batch.cause_mask[1].any()


def test_a_batch_without_words_is_one_empty_window(tokenizer: ConversationTokenizer) -> None:
    batch = make_batch([labelled("x", [("A", None, "joy"), ("B", "  ", "neutral")])], tokenizer)
    assert len(batch.input_ids) == 1
    assert batch.attention_mask.any(1).all()  # attention over nothing has no gradient
    assert (batch.token_utterance == batch.text_mask.numel()).all()
    assert not batch.text_mask.any()


def size(conversation: LabelledConversation) -> int:
    return sum(len(u.text or "") // 4 + 4 for u in conversation.conversation.utterances)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_groups_hold_every_conversation_once(seed: int | None) -> None:
    random = None if seed is None else np.random.default_rng(seed)
    groups = list(group_by_size(CONVERSATIONS, 600, random))
    assert sorted(int(c.conversation.id) for group in groups for c in group) == list(range(1, 13))
    assert 1 < len(groups) < 12
    assert all(len(group) * max(map(size, group)) <= 600 for group in groups)


def test_groups_are_shuffled_by_the_seed_alone() -> None:
    def order(seed: int) -> list[list[str]]:
        groups = group_by_size(CONVERSATIONS, 600, np.random.default_rng(seed))
        return [[c.conversation.id for c in group] for group in groups]

    assert order(3) == order(3)
    assert order(3) != order(4)


def test_a_large_conversation_is_a_group_of_its_own() -> None:
    groups = list(group_by_size(CONVERSATIONS, 1))
    assert [len(group) for group in groups] == [1] * 12


def test_no_conversations_are_no_groups() -> None:
    assert list(group_by_size([], 100)) == []


def test_a_batch_moves_to_a_device(batch: TextBatch) -> None:
    moved = batch.to(torch.device("meta"))
    assert moved.input_ids.device.type == moved.cause_mask.device.type == "meta"
    assert moved.causes.shape == batch.causes.shape
