"""Projector: turns the fusion's view of an utterance's voice, faces and frames into soft tokens for the Llama.

Before training, a soft token is the mean of the emotion words' embeddings, weighted by the probabilities that the
fusion computes without text. A linear map of the fusion's state, initialised with zeros, is added to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class ProjectorConfig:
    """Sizes of a projector.

    n_tokens: soft tokens per utterance. state_size: of the fusion's hidden states. hidden_size: of the Llama.
    """

    n_tokens: int
    state_size: int
    hidden_size: int
    n_emotions: int = 7

    def __post_init__(self) -> None:
        if min(self.n_tokens, self.state_size, self.hidden_size, self.n_emotions) < 1:
            raise ValueError("sizes of a projector must be positive")


class SoftTokenProjector(nn.Module):
    """Maps the fusion's states and emotion logits to soft tokens.

    emotion_words: float32 (emotions, hidden size), embeddings of the emotions' words; None for zeros, where trained
        weights are loaded afterwards.
    """

    def __init__(self, config: ProjectorConfig, emotion_words: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        shape = (config.n_emotions, config.n_tokens, config.hidden_size)
        words = torch.zeros(shape[0], shape[2]) if emotion_words is None else emotion_words
        self.words = nn.Parameter(words.detach().float()[:, None].expand(shape).clone())
        self.state_norm = nn.LayerNorm(config.state_size)
        self.state_proj = nn.Linear(config.state_size, config.n_tokens * config.hidden_size)
        nn.init.zeros_(self.state_proj.weight)
        nn.init.zeros_(self.state_proj.bias)

    def forward(self, hidden_states: Tensor, emotion_logits: Tensor) -> Tensor:
        """hidden_states (..., state size), emotion_logits (..., emotions) -> (..., soft tokens, hidden size)."""
        config = self.config
        mean_words = emotion_logits.softmax(-1) @ self.words.flatten(1)
        tokens: Tensor = mean_words + self.state_proj(self.state_norm(hidden_states))
        return tokens.reshape(*tokens.shape[:-1], config.n_tokens, config.hidden_size)
