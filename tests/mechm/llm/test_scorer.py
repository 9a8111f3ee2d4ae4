"""The Llama as a scorer: packed equals one by one, and both equal the plain language model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mechm.llm.scorer import AnswerScores, add_adapter, load_llama, make_question_batch
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.types import Utterance

CONVERSATIONS = (
    tuple(
        Utterance(i + 1, "AB"[i % 2], text) for i, text in enumerate(("Hi.", "You told her everything!", "Oh. Sorry."))
    ),
    (Utterance(1, "Clara", "There is somebody at the door, and he will not leave."), Utterance(2, "Tom", "What?")),
)


@pytest.fixture(scope="module")
def folder(small_weights: Path) -> Path:
    """SmolLM2's folder, for its tokenizer."""
    return small_weights / "llm"


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> QuestionTokenizer:
    return QuestionTokenizer(folder / "tokenizer.json")


@pytest.fixture
def scores(tokenizer: QuestionTokenizer) -> AnswerScores:
    """Random weights in the architecture of Llama-2-7b, two layers deep."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=2
    )
    return AnswerScores(LlamaForCausalLM(config), tokenizer).eval()  # type: ignore[no-untyped-call]


def test_packed_batched_and_single_answer_alike(scores: AnswerScores, tokenizer: QuestionTokenizer) -> None:
    with torch.inference_mode():
        together = make_question_batch([tokenizer.pack(c, range(len(c))) for c in CONVERSATIONS])
        emotion, cause = scores(together)
        row = 0
        for utterances in CONVERSATIONS:
            for position in range(len(utterances)):
                alone = tokenizer.pack(utterances, [position])
                one = scores(make_question_batch([alone]))
                assert torch.allclose(one[0][0], emotion[row], atol=1e-5)
                assert torch.allclose(one[1][0], cause[row], atol=1e-5)
                plain = scores.llama(input_ids=torch.from_numpy(alone.input_ids)[None]).logits[0]
                assert torch.allclose(plain[alone.emotion_at[0], tokenizer.emotion_answers], emotion[row], atol=1e-5)
                assert torch.allclose(plain[alone.cause_at[0], tokenizer.cause_answers], cause[row], atol=1e-5)
                row += 1
    assert row == len(emotion) == len(cause)
    assert emotion.std() > 1e-4


def test_padding_gives_finite_gradients_to_the_adapter_alone(
    scores: AnswerScores, tokenizer: QuestionTokenizer
) -> None:
    adapted = AnswerScores(add_adapter(scores.llama), tokenizer).train()
    batch = make_question_batch([tokenizer.pack(c, range(len(c))) for c in CONVERSATIONS])
    assert len({int((one != 0).sum()) for one in batch.input_ids}) == 2, "the second conversation is padded"
    emotion, cause = adapted(batch)
    (emotion.square().mean() + cause.square().mean()).backward()
    trained = {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert not any("lm_head" in name for name in trained)
    assert all(gradient is not None and bool(torch.isfinite(gradient).all()) for gradient in trained.values())


def test_smollm2_scores_in_bf16_as_in_fp32(folder: Path, tokenizer: QuestionTokenizer) -> None:
    packed = [tokenizer.pack(c, range(len(c))) for c in CONVERSATIONS]
    answers = []
    for dtype in (torch.float32, torch.bfloat16):
        with torch.inference_mode():
            emotion, _ = AnswerScores(load_llama(folder, dtype), tokenizer).eval()(make_question_batch(packed))
        answers.append(emotion.log_softmax(-1).numpy())
    assert np.abs(answers[0] - answers[1]).max() < 0.35
    assert answers[0].std() > 0.5
