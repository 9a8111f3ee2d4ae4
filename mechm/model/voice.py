"""Voice head: emotion probabilities from the voice alone, and their combination with the fusion's.

It is one linear map from standardised audio tokens to emotions, fitted in closed form on emotional speech before the
fusion is trained (`mechm.training.voice_head`). Its weights are buffers, which training the fusion does not change. An
unfitted head has no influence.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mechm_runtime.bundle.config import DecisionConfig

UNHEARD_LOGIT = -1e4
"""Logit of an emotion without a recording in training: far below any real one, still finite in fp16."""
MIN_DOUBT = 1e-3
"""Share of a uniform distribution in the voice's likelihood where there is only a voice, so that its log is finite."""


class VoiceHead(nn.Module):
    """Maps audio tokens to log-probabilities of the emotions with recordings in training.

    weight: (audio tokens * audio width, emotions); bias: (emotions,).
    heard: bool (emotions,), emotions with recordings; all False before fitting.
    doubt: (), assumed probability that a voice beside other modalities is unrelated to the emotion.
    decision_temperature (), decision_bias (emotions,): of the calibration after the fusion; not saved, since they are
        part of the decision (`set_calibration`).
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

    def set_calibration(self, decision: DecisionConfig) -> None:
        """Set the decision's temperature and bias, after which voice and fusion are combined.

        Those are fitted on text. Applied to the voice as well they cost 7 points of recall, mostly of disgust and fear,
        which are rare in text.
        """
        self.decision_temperature.fill_(decision.emotion_temperature)
        self.decision_bias.copy_(torch.tensor(decision.emotion_bias))

    def forward(self, standardised: Tensor) -> Tensor:
        """Map standardised audio tokens (..., audio tokens, audio width) to log-probabilities (..., emotions).

        Returns: about `UNHEARD_LOGIT` for emotions without recordings; all equal before fitting.
        """
        logits = standardised.flatten(-2) @ self.weight + self.bias
        return (logits + self._unheard(logits)).log_softmax(-1)

    def combine(self, emotion_logits: Tensor, voice: Tensor, others: Tensor) -> Tensor:
        """Combine the fusion's logits with the voice's log-probabilities.

        Beside other modalities the voice enters as a likelihood: its own with probability 1 - `doubt`, else a uniform
        one. A misleading voice therefore changes the odds of two emotions by a bounded factor, and clear text outweighs
        it. Without other modalities the voice alone decides between the emotions it knows. In both cases emotions
        without recordings keep the probability that the fusion gives them.

        emotion_logits, voice: (..., emotions). others: bool (...), whether text or faces are present.
        Returns: logits (..., emotions).
        """
        beside = others[..., None].to(emotion_logits.dtype)
        doubt = beside * self.doubt + (1.0 - beside) * MIN_DOUBT
        n_heard = self.heard.sum().clamp(min=1).to(emotion_logits.dtype)
        likelihood = ((1.0 - doubt) * voice.exp() + doubt / n_heard).log()
        unheard = self._unheard(emotion_logits)
        calibrated = emotion_logits / self.decision_temperature + self.decision_bias
        mass = (calibrated + unheard).logsumexp(-1, keepdim=True)
        joint = (beside * calibrated + likelihood + unheard).log_softmax(-1) + mass
        logits = (joint - self.decision_bias) * self.decision_temperature
        return torch.where(self.heard, logits, emotion_logits)

    def _unheard(self, like: Tensor) -> Tensor:
        return (~self.heard).to(like.dtype) * UNHEARD_LOGIT
