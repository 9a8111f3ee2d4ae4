"""What was heard and seen of an utterance, as soft tokens in the Llama's embedding space.

A soft token starts as what a reader would write there: the mean of the emotions' words, each as probable as the fusion
found it without the words. What the fusion's state tells beyond that is added, from nothing at the start.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class ProjectorConfig:
    """Sizes of a projector.

    n_tokens: soft tokens an utterance. state_size: of the fusion's hidden states. hidden_size: of the Llama.
    """

    n_tokens: int
    state_size: int
    hidden_size: int
    n_emotions: int = 7

    def __post_init__(self) -> None:
        if min(self.n_tokens, self.state_size, self.hidden_size, self.n_emotions) < 1:
            raise ValueError("sizes of a projector must be positive")


class SoftTokenProjector(nn.Module):
    """The fusion's states and emotion logits to soft tokens.

    emotion_words: float32 (emotions, hidden size), embeddings of their words; None for zeros, to be loaded over.
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
        told = emotion_logits.softmax(-1) @ self.words.flatten(1)
        tokens: Tensor = told + self.state_proj(self.state_norm(hidden_states))
        return tokens.reshape(*tokens.shape[:-1], config.n_tokens, config.hidden_size)
