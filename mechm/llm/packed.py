"""The Llama as one graph: a packed conversation in, log-probabilities of the answers out.

It is the reference for the graph that `mechm_export` writes; `TorchLlama` runs it in torch behind that graph's
interface.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mechm.llm.scorer import AnswerScores, QuestionBatch
from mechm_runtime.llm.questions import CONVERSATION


class PackedLlama(nn.Module):
    """Maps packed questions to log-probabilities; the attention mask is computed from the segments inside the graph.

    An earlier part of the conversation can be passed as keys and values instead of tokens.
    """

    emotion_head: Tensor
    cause_head: Tensor

    def __init__(self, scores: AnswerScores) -> None:
        super().__init__()
        self.scores = scores
        # Copies of the answers' rows, so that the graph does not need the whole vocabulary's matrix.
        self.register_buffer("emotion_head", scores.head(scores.emotion_answers).detach().clone())
        self.register_buffer("cause_head", scores.head(scores.cause_answers).detach().clone())

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        segments: Tensor,
        emotion_at: Tensor,
        cause_at: Tensor,
        soft_tokens: Tensor,
        soft_at: Tensor,
        past: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Score the answers.

        input_ids, position_ids, segments: int64 (1, T), the conversation's tokens first. emotion_at, cause_at: int64
            (Q,). soft_tokens: float32 (S, D), replace the tokens at soft_at, int64 (S,); S may be 0.
        past: float16 (2 * layers, key heads, P, head_dim), keys and values of P tokens of the conversation, layer by
            layer; P may be 0.
        Returns: log-probabilities of the emotions (Q, 7) and of the causes (Q, answers); keys and values of the C
            conversation tokens in the input, float16 (2 * layers, key heads, C, head_dim), to be appended to `past`.
        """
        n_past = past.shape[2]
        order = torch.arange(input_ids.shape[1], device=input_ids.device)
        before = order[None, :] <= order[:, None]
        own = segments[:, None, :] == segments[:, :, None]
        among_new = before & (own | (segments == CONVERSATION)[:, None, :])
        visible = nn.functional.pad(among_new, (n_past, 0), value=True)
        batch = QuestionBatch(input_ids, position_ids, visible[:, None], emotion_at, cause_at, soft_at)
        cache = self._cache(past)
        states = self.scores.states(batch, soft_tokens, cache)
        # In fp32: differences between answers are small beside the logits.
        emotion = states.index_select(0, emotion_at).float() @ self.emotion_head.T
        cause = states.index_select(0, cause_at).float() @ self.cause_head.T
        read = slice(n_past, n_past + int((segments == CONVERSATION).sum()))
        present = torch.cat([t[:, :, read] for layer in cache.layers for t in (layer.keys, layer.values)])
        return emotion.log_softmax(-1), cause.log_softmax(-1), present.to(past.dtype)

    def nothing_read(self) -> Tensor:
        """Return an empty `past`, P = 0."""
        attention = [layer.self_attn for layer in self.scores.causal.model.layers]
        n_heads = self.scores.causal.config.num_key_value_heads
        shape = (2 * len(attention), n_heads, 0, attention[0].head_dim)
        return torch.zeros(shape, dtype=torch.float16, device=self.scores.device)

    def _cache(self, past: Tensor) -> Any:
        from transformers import DynamicCache

        rows = past.to(self.scores.causal.dtype)[:, None]
        return DynamicCache(list(zip(rows[0::2], rows[1::2], strict=True)))


class TorchLlama:
    """Runs the graph of `mechm_runtime.llm.scorer.LlamaScorer` in torch instead of in an engine."""

    def __init__(self, scores: AnswerScores) -> None:
        self._packed = PackedLlama(scores)
        self._device = scores.device

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run on the inputs of `graph_inputs` and return the graph's outputs by name; `past` is empty by default."""
        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()}
        arguments = {"past": self._packed.nothing_read(), **tensors}
        with torch.inference_mode():
            answers = self._packed(**{name: value.to(self._device) for name, value in arguments.items()})
        names = ("emotion_log_probabilities", "cause_log_probabilities", "present")
        return {name: answer.cpu().numpy() for name, answer in zip(names, answers, strict=True)}
