"""What is trained together: the text encoder and the fusion, from token windows to scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mechm.data.batches import TextBatch
from mechm.data.simulated_modalities import Evidence
from mechm.model.config import ModelConfig
from mechm.model.fusion import Fusion, FusionOutput
from mechm.model.text import TextEncoder


class Network(nn.Module):
    """Text encoder, pooling and fusion. The encoders of the other modalities stay frozen and outside."""

    def __init__(self, config: ModelConfig, text: TextEncoder, fusion: Fusion) -> None:
        super().__init__()
        self.config = config
        self.text = text
        self.fusion = fusion

    def forward(self, batch: TextBatch, evidence: Evidence, text_dropped: Tensor | None = None) -> FusionOutput:
        """Score a batch; `text_dropped` bool (B, U) marks utterances to be read without their text."""
        pooled = pool_tokens(self.text(batch.input_ids, batch.attention_mask), batch.token_utterance, batch.text_mask)
        text_mask = batch.text_mask if text_dropped is None else batch.text_mask & ~text_dropped
        output: FusionOutput = self.fusion(
            pooled,
            text_mask,
            evidence.audio,
            evidence.audio_mask,
            evidence.scene,
            evidence.scene_mask,
            evidence.face,
            evidence.face_mask,
            batch.speaker_ids,
            batch.utterance_mask,
        )
        return output

    def trained_state(self) -> dict[str, Tensor]:
        """What training changes, on the CPU."""
        return {name: value.detach().cpu() for name, value in self.state_dict().items() if not self.is_frozen(name)}

    def is_frozen(self, name: str) -> bool:
        """Whether a tensor of this network keeps its base value; only the text encoder has such."""
        return name.startswith("text.") and self.text.is_frozen(name)

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return self.fusion.no_text.device


def pool_tokens(states: Tensor, token_utterance: Tensor, text_mask: Tensor) -> Tensor:
    """Mean token state an utterance, as `mechm_runtime.modalities.text_windows.pool_utterances` does it.

    states: float (W, T, D). token_utterance: int64 (W, T), B * U where a token counts for none. text_mask: (B, U).
    Returns: float32 (B, U, D), zeros for an utterance without tokens.
    """
    B, U = text_mask.shape
    owners = token_utterance.flatten()
    empty = torch.zeros(B * U + 1, states.shape[-1], device=states.device)
    sums = empty.index_add(0, owners, states.flatten(0, 1).float())
    counts = torch.bincount(owners, minlength=B * U + 1).clamp(min=1)
    return (sums / counts[:, None])[:-1].view(B, U, -1)
