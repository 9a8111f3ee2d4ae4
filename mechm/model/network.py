"""The trainable network: text encoder and fusion, from token windows to scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mechm.model.config import ModelConfig
from mechm.model.fusion import Fusion, FusionOutput
from mechm.model.inputs import NonverbalInputs, TextBatch
from mechm.model.text import TextEncoder


class Network(nn.Module):
    """Text encoder, pooling and fusion. The frozen encoders of the other modalities are not part of it."""

    def __init__(self, config: ModelConfig, text: TextEncoder, fusion: Fusion) -> None:
        super().__init__()
        self.config = config
        self.text = text
        self.fusion = fusion

    def forward(self, batch: TextBatch, nonverbal: NonverbalInputs, text_dropped: Tensor | None = None) -> FusionOutput:
        """Score a batch; `text_dropped`, bool (B, U), marks utterances whose text is masked."""
        pooled = pool_tokens(self.text(batch.input_ids, batch.attention_mask), batch.token_utterance, batch.text_mask)
        text_mask = batch.text_mask if text_dropped is None else batch.text_mask & ~text_dropped
        output: FusionOutput = self.fusion(
            pooled,
            text_mask,
            nonverbal.audio,
            nonverbal.audio_mask,
            nonverbal.scene,
            nonverbal.scene_mask,
            nonverbal.face,
            nonverbal.face_mask,
            batch.speaker_ids,
            batch.utterance_mask,
        )
        return output

    def trained_state(self) -> dict[str, Tensor]:
        """Return the tensors that training changes, on the CPU."""
        return {name: value.detach().cpu() for name, value in self.state_dict().items() if not self.is_frozen(name)}

    def is_frozen(self, name: str) -> bool:
        """Whether training leaves a tensor unchanged, which is so for some of the text encoder's only."""
        return name.startswith("text.") and self.text.is_frozen(name)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.fusion.no_text.device


def pool_tokens(states: Tensor, token_utterance: Tensor, text_mask: Tensor) -> Tensor:
    """Average the token states of each utterance, as `mechm_runtime.modalities.text_windows.pool_utterances` does.

    states: float (W, T, D). token_utterance: int64 (W, T), B * U where a token counts for none. text_mask: (B, U).
    Returns: float32 (B, U, D), zeros for an utterance without tokens.
    """
    B, U = text_mask.shape
    owners = token_utterance.flatten()
    empty = torch.zeros(B * U + 1, states.shape[-1], device=states.device)
    sums = empty.index_add(0, owners, states.flatten(0, 1).float())
    counts = torch.bincount(owners, minlength=B * U + 1).clamp(min=1)
    return (sums / counts[:, None])[:-1].view(B, U, -1)
