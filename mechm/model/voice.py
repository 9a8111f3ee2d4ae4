"""What a voice says by itself, and how its opinion meets the fusion's.

One linear map from standardised audio tokens to emotions, fitted in closed form on emotional speech before the fusion
is trained (`mechm.training.voice_head`). Its weights are buffers: no step of the fusion's training moves them, and a
head that was never fitted says nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mechm_runtime.bundle.config import DecisionConfig

UNHEARD = -1e4
"""Logit of an emotion that was in no recording: far below any real one, still finite in fp16."""
LEAST_DOUBT = 1e-3
"""Share of the opinion that says nothing even where a voice is all there is, so that its logarithm stays finite."""


class VoiceHead(nn.Module):
    """Audio tokens to log-probabilities of the emotions that were heard in training.

    weight: (audio tokens * audio width, emotions); bias: (emotions,).
    heard: bool (emotions,), all False before fitting.
    doubt: (), how often a voice beside other evidence is taken to say nothing about the emotion.
    decision_temperature (), decision_bias (emotions,): of the calibration that follows the fusion; not saved, since
        they come with the decision (`follow`).
    """

    weight: Tensor
    bias: Tensor
    heard: Tensor
    doubt: Tensor
    decision_temperature: Tensor
    decision_bias: Tensor

    def __init__(self, input_size: int, n_emotions: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(input_size, n_emotions))
        self.register_buffer("bias", torch.zeros(n_emotions))
        self.register_buffer("heard", torch.zeros(n_emotions, dtype=torch.bool))
        self.register_buffer("doubt", torch.ones(()))
        self.register_buffer("decision_temperature", torch.ones(()), persistent=False)
        self.register_buffer("decision_bias", torch.zeros(n_emotions), persistent=False)

    def follow(self, decision: DecisionConfig) -> None:
        """Weigh opinions where the fusion's logits are calibrated: behind this decision's temperature and bias.

        Those are fitted on text. Left to work on a voice too they cost 7 points of recall, most of it disgust and fear,
        which are rare in text.
        """
        self.decision_temperature.fill_(decision.emotion_temperature)
        self.decision_bias.copy_(torch.tensor(decision.emotion_bias))

    def forward(self, standardised: Tensor) -> Tensor:
        """Standardised audio tokens (..., audio tokens, audio width) -> log-probabilities (..., emotions).

        About `UNHEARD` for an emotion that was not heard; all equal before fitting.
        """
        logits = standardised.flatten(-2) @ self.weight + self.bias
        return (logits + self._unheard(logits)).log_softmax(-1)

    def weigh(self, emotion_logits: Tensor, opinion: Tensor, others: Tensor) -> Tensor:
        """The fusion's logits and the voice's opinion as one.

        Beside other evidence the opinion is a likelihood that is multiplied in: the voice's own with probability
        1 - `doubt`, else one that tells nothing. So a strange voice changes the odds of two emotions by a bounded
        factor, and plain words outweigh it. Without other evidence the voice alone decides between the emotions that it
        knows. Either way emotions that were never heard keep the probability that the fusion gives them.

        emotion_logits, opinion: (..., emotions). others: bool (...), whether there is other evidence than the voice.
        Returns: (..., emotions).
        """
        beside = others[..., None].to(emotion_logits.dtype)
        doubt = beside * self.doubt + (1.0 - beside) * LEAST_DOUBT
        n_heard = self.heard.sum().clamp(min=1).to(emotion_logits.dtype)
        likelihood = ((1.0 - doubt) * opinion.exp() + doubt / n_heard).log()
        unheard = self._unheard(emotion_logits)
        calibrated = emotion_logits / self.decision_temperature + self.decision_bias
        mass = (calibrated + unheard).logsumexp(-1, keepdim=True)
        joint = (beside * calibrated + likelihood + unheard).log_softmax(-1) + mass
        logits = (joint - self.decision_bias) * self.decision_temperature
        return torch.where(self.heard, logits, emotion_logits)

    def _unheard(self, like: Tensor) -> Tensor:
        return (~self.heard).to(like.dtype) * UNHEARD
