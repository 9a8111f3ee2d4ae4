"""Scores answers with the Llama: packed questions in, logits of the answer tokens out.

It works with any causal model of transformers that has a `model` and an `lm_head`, with or without a LoRA adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mechm.model.fusion import MASKED
from mechm_runtime.llm.questions import PackedQuestions, QuestionTokenizer

LORA_RANK = 16


@dataclass(frozen=True, slots=True)
class QuestionBatch:
    """Packed conversations, right-padded.

    input_ids, position_ids: int64 (B, T). visible: bool (B, 1, T, T), True where a token attends to another; padding
    attends to itself. emotion_at, cause_at: int64 (N,), rows of the flattened (B * T) tokens, by conversation.
    soft_at: int64 (S,), rows of the soft tokens.
    """

    input_ids: Tensor
    position_ids: Tensor
    visible: Tensor
    emotion_at: Tensor
    cause_at: Tensor
    soft_at: Tensor

    def to(self, device: torch.device) -> QuestionBatch:
        """Return the same batch on a device."""
        return QuestionBatch(*(getattr(self, field.name).to(device) for field in fields(self)))


class AnswerScores(nn.Module):
    """Scores the answers at the ends of the questions.

    llama: a causal language model. emotion_answers, cause_answers: token ids.
    """

    emotion_answers: Tensor
    cause_answers: Tensor

    def __init__(self, llama: Any, tokenizer: QuestionTokenizer) -> None:
        super().__init__()
        self.llama = llama
        self.register_buffer("emotion_answers", torch.from_numpy(tokenizer.emotion_answers), persistent=False)
        self.register_buffer("cause_answers", torch.from_numpy(tokenizer.cause_answers), persistent=False)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.emotion_answers.device

    def forward(self, batch: QuestionBatch, soft_tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Score a batch.

        soft_tokens: float (S, D), None where the batch has none.
        Returns: float32 logits (N, 7) of the emotions and (N, answers) of the causes, `NO_CAUSE` last.
        """
        states = self.states(batch, soft_tokens)
        # In fp32: differences between answers are small beside the logits.
        with torch.autocast(self.device.type, enabled=False):
            emotion = states[batch.emotion_at].float() @ self.head(self.emotion_answers).T
            cause = states[batch.cause_at].float() @ self.head(self.cause_answers).T
        return emotion, cause

    def states(self, batch: QuestionBatch, soft_tokens: Tensor | None = None, cache: Any = None) -> Tensor:
        """Compute the last hidden states, (B * T, D), in the Llama's dtype.

        cache: keys and values of earlier tokens, in transformers' form, to which the new ones are appended; `visible`
            then includes those tokens, before the batch's.
        """
        causal = self.causal
        embedded: Tensor = causal.get_input_embeddings()(batch.input_ids)
        if soft_tokens is not None:
            flat = embedded.flatten(0, 1).index_put((batch.soft_at,), soft_tokens.to(embedded.dtype))
            embedded = flat.view(embedded.shape)
        # Additive, as transformers' eager attention expects.
        mask = torch.zeros(batch.visible.shape, dtype=causal.dtype, device=batch.visible.device)
        answered = causal.model(
            inputs_embeds=embedded,
            position_ids=batch.position_ids,
            attention_mask=mask.masked_fill(~batch.visible, MASKED),
            past_key_values=cache,
            use_cache=cache is not None,
        )
        states: Tensor = answered.last_hidden_state.flatten(0, 1)
        return states

    def head(self, answers: Tensor) -> Tensor:
        """Return the rows of the output matrix for these tokens, float32 (answers, D)."""
        rows: Tensor = self.causal.lm_head.weight[answers].float()
        return rows

    @property
    def hidden_size(self) -> int:
        """Width of the Llama's embeddings."""
        return int(self.causal.config.hidden_size)

    @property
    def causal(self) -> Any:
        """The language model, with its adapter if it has one."""
        return self.llama.get_base_model() if hasattr(self.llama, "get_base_model") else self.llama


def make_question_batch(packed: Sequence[PackedQuestions]) -> QuestionBatch:
    """Pad packed conversations to one length."""
    B, T = len(packed), max(len(p.input_ids) for p in packed)
    input_ids, position_ids = np.zeros((B, T), np.int64), np.zeros((B, T), np.int64)
    # A row that attends to nothing would be NaN, which would spread in the backward pass.
    visible = np.broadcast_to(np.eye(T, dtype=bool), (B, T, T)).copy()
    for b, one in enumerate(packed):
        n = len(one.input_ids)
        input_ids[b, :n], position_ids[b, :n], visible[b, :n, :n] = (
            one.input_ids,
            one.position_ids,
            one.attention_mask(),
        )
    emotion_at, cause_at, soft_at = (
        np.concatenate([b * T + getattr(one, name) for b, one in enumerate(packed)])
        for name in ("emotion_at", "cause_at", "soft_at")
    )
    return QuestionBatch(
        torch.from_numpy(input_ids),
        torch.from_numpy(position_ids),
        torch.from_numpy(visible)[:, None],
        torch.from_numpy(emotion_at),
        torch.from_numpy(cause_at),
        torch.from_numpy(soft_at),
    )


def load_llama(folder: Path, dtype: torch.dtype) -> Any:
    """Load the base language model of a folder in the Hugging Face layout.

    On CPUs attention uses plain matrix products: torch's fused kernel makes a training step a twelfth slower, since a
    packed conversation's mask is dense (SmolLM2-135M, 1,600 tokens per step, torch 2.13, AVX512-BF16: 6.5 against
    6.0 s).
    """
    from transformers import AutoModelForCausalLM

    attention = "sdpa" if torch.cuda.is_available() else "eager"
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, attn_implementation=attention
    )


def load_merged(base: Path, adapter: Path) -> Any:
    """Load the language model of a folder and merge a trained adapter into it, in fp32."""
    from peft import PeftModel

    return PeftModel.from_pretrained(load_llama(base, torch.float32), adapter).merge_and_unload()


def add_adapter(llama: Any, rank: int = LORA_RANK) -> Any:
    """Add a trainable LoRA adapter to every linear layer but the output layer; the base is frozen."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", exclude_modules=["lm_head"], task_type="CAUSAL_LM"
    )
    return get_peft_model(llama, config)


def resume_adapter(llama: Any, folder: Path) -> Any:
    """Load a trained adapter into the model for further training; the base is frozen."""
    from peft import PeftModel

    return PeftModel.from_pretrained(llama, str(folder), is_trainable=True, local_files_only=True)
