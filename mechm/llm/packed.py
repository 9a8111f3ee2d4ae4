"""The Llama as one graph: a packed conversation in, log-probabilities of the answers out.

It is what `mechm_export` writes to ONNX, and in torch it stands in for that graph (`TorchLlama`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mechm.llm.scorer import AnswerScores, QuestionBatch
from mechm_runtime.questions import CONVERSATION


class PackedLlama(nn.Module):
    """Packed questions to log-probabilities; what sees what is worked out inside the graph, from the segments."""

    emotion_head: Tensor
    cause_head: Tensor

    def __init__(self, scores: AnswerScores) -> None:
        super().__init__()
        self.scores = scores
        # Rows of their own, so that the graph does not look into the whole vocabulary's matrix for them.
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
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities (Q, 7) of the emotions and (Q, answers) of the causes.

        input_ids, position_ids, segments: int64 (1, T). emotion_at, cause_at: int64 (Q,).
        soft_tokens: float32 (S, D), in the place of the tokens at soft_at, int64 (S,); S may be 0.
        """
        order = torch.arange(input_ids.shape[1], device=input_ids.device)
        before = order[None, :] <= order[:, None]
        own = segments[:, None, :] == segments[:, :, None]
        visible = before & (own | (segments == CONVERSATION)[:, None, :])
        batch = QuestionBatch(input_ids, position_ids, visible[:, None], emotion_at, cause_at, soft_at)
        states = self.scores.states(batch, soft_tokens)
        # In fp32: differences between answers are small beside the logits.
        emotion = states.index_select(0, emotion_at).float() @ self.emotion_head.T
        cause = states.index_select(0, cause_at).float() @ self.cause_head.T
        return emotion.log_softmax(-1), cause.log_softmax(-1)


class TorchLlama:
    """Runs in torch what `mechm_runtime.llama.LlamaReader` would run in an engine."""

    def __init__(self, scores: AnswerScores) -> None:
        self._packed = PackedLlama(scores)
        self._device = scores.device

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.float32]]:
        """Inputs of `graph_inputs` to log-probabilities by name."""
        arguments = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()}
        with torch.inference_mode():
            emotion, cause = self._packed(**{name: value.to(self._device) for name, value in arguments.items()})
        return {"emotion_log_probabilities": emotion.cpu().numpy(), "cause_log_probabilities": cause.cpu().numpy()}
