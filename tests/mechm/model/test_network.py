"""Text encoder, pooling and fusion together: pooled as the runtime pools, and equal alone or in a batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mechm.data.batches import make_batch
from mechm.model.build import build_network
from mechm.model.config import TINY
from mechm.model.inputs import NonverbalInputs
from mechm.model.network import Network, pool_tokens
from mechm_export.check_data import check_conversations
from mechm_runtime.bundle.config import TextConfig
from mechm_runtime.modalities.text_windows import ConversationTokenizer, pool_utterances
from mechm_runtime.types import Conversation, LabelledConversation, Utterance

CONVERSATIONS = check_conversations()


@pytest.fixture(scope="module")
def network() -> Network:
    return build_network(TINY, None)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file: Path) -> ConversationTokenizer:
    return ConversationTokenizer(tokenizer_file, TextConfig(TINY.text.max_tokens, 16))


def wordless(n_utterances: int = 3) -> LabelledConversation:
    utterances = tuple(Utterance(i + 1, speaker="A") for i in range(n_utterances))
    return LabelledConversation(Conversation("wordless", utterances), ("neutral",) * n_utterances, frozenset())


@torch.inference_mode()
def test_pooling_equals_the_runtimes(network: Network, tokenizer: ConversationTokenizer) -> None:
    chosen = [CONVERSATIONS[0], wordless(), CONVERSATIONS[4]]
    batch = make_batch(chosen, tokenizer)
    states = network.text(batch.input_ids, batch.attention_mask)
    pooled = pool_tokens(states, batch.token_utterance, batch.text_mask)
    assert pooled.shape == (3, 12, TINY.text.hidden_size)
    for row, labelled in enumerate(chosen):
        windows = tokenizer(labelled.conversation.utterances)
        n = windows.n_utterances
        if len(windows.input_ids):
            own = network.text(torch.from_numpy(windows.input_ids), torch.from_numpy(windows.attention_mask)).numpy()
        else:
            own = np.zeros((0, 1, TINY.text.hidden_size), np.float32)
        expected = pool_utterances(own, windows)
        assert np.abs(pooled[row, :n].numpy() - expected).max() < 1e-5
        assert not pooled[row, n:].any()
        assert (batch.text_mask[row, :n].numpy() == windows.has_text).all()
    assert len(tokenizer(chosen[0].conversation.utterances).input_ids) > 1  # several windows were pooled


@torch.inference_mode()
def test_a_batch_equals_its_conversations_one_by_one(network: Network, tokenizer: ConversationTokenizer) -> None:
    chosen = [CONVERSATIONS[2], wordless(2), CONVERSATIONS[10]]
    batch = make_batch(chosen, tokenizer)
    together = network(batch, NonverbalInputs.absent(TINY, (3, batch.text_mask.shape[1])))
    for row, labelled in enumerate(chosen):
        n = len(labelled.emotions)
        alone = network(make_batch([labelled], tokenizer), NonverbalInputs.absent(TINY, (1, n)))
        assert (together.emotion_logits[row, :n] - alone.emotion_logits[0]).abs().max() < 1e-5
        assert (together.pair_logits[row, :n, :n] - alone.pair_logits[0]).abs().max() < 1e-5


@torch.inference_mode()
def test_dropped_text_has_no_influence(network: Network, tokenizer: ConversationTokenizer) -> None:
    labelled = CONVERSATIONS[1]
    n = len(labelled.emotions)
    batch, evidence = make_batch([labelled], tokenizer), NonverbalInputs.absent(TINY, (1, n))
    other = replace(batch, input_ids=batch.input_ids.flip(1))
    dropped = torch.ones(1, n, dtype=torch.bool)
    assert torch.equal(network(batch, evidence, dropped)[0], network(other, evidence, dropped)[0])
    assert not torch.equal(network(batch, evidence)[0], network(other, evidence)[0])


@torch.inference_mode()
def test_a_conversation_without_any_text_is_scored(network: Network, tokenizer: ConversationTokenizer) -> None:
    output = network(make_batch([wordless()], tokenizer), NonverbalInputs.absent(TINY, (1, 3)))
    assert all(torch.isfinite(part).all() for part in output)


def test_what_is_trained_is_all_but_the_embeddings(network: Network) -> None:
    state, trained = network.state_dict(), network.trained_state()
    assert {name for name in state if name not in trained} == {
        name for name in state if name.startswith("text.encoder.embeddings.")
    }
    assert any(name.startswith("text.encoder.encoder.") for name in trained)
    assert {"fusion.audio_mean", "fusion.emotion_head.weight"} <= trained.keys()
