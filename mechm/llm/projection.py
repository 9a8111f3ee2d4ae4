"""Projects voices, faces and frames to soft tokens for the Llama: the fusion without text, then the projector.

`mechm_runtime.llm.soft_tokens` does the same with exported graphs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mechm.model.fusion import Fusion, FusionOutput
from mechm.model.inputs import NonverbalInputs
from mechm.model.projector import SoftTokenProjector
from mechm_runtime.fusion.inputs import speaker_numbers
from mechm_runtime.types import Conversation


class Projection(nn.Module):
    """A frozen fusion followed by the projector.

    text_size: width of the fusion's text inputs, which are masked here.
    """

    def __init__(self, fusion: Fusion, text_size: int, projector: SoftTokenProjector) -> None:
        super().__init__()
        self.fusion = fusion.eval().requires_grad_(False)
        self.text_size = text_size
        self.projector = projector

    def forward(self, nonverbal: NonverbalInputs, speaker_ids: Tensor, utterance_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Compute soft tokens.

        speaker_ids: int64 (B, U); utterance_mask: bool (B, U); as for `Fusion.forward`.
        Returns: soft tokens float32 (B, U, soft tokens, D), and bool (B, U), which utterances have a nonverbal input.
        """
        with torch.no_grad():
            output: FusionOutput = self.fusion(
                torch.zeros(*speaker_ids.shape, self.text_size, device=speaker_ids.device),
                torch.zeros_like(utterance_mask),
                nonverbal.audio,
                nonverbal.audio_mask,
                nonverbal.scene,
                nonverbal.scene_mask,
                nonverbal.face,
                nonverbal.face_mask,
                speaker_ids,
                utterance_mask,
            )
        has_nonverbal = nonverbal.audio_mask | nonverbal.face_mask.any(-1) | nonverbal.scene_mask.any(-1)
        tokens: Tensor = self.projector(output.hidden_states, output.emotion_logits)
        return tokens, has_nonverbal & utterance_mask


def speakers_of(conversations: Sequence[Conversation]) -> tuple[Tensor, Tensor]:
    """Number the speakers of B conversations, padded: speaker_ids int64 (B, U), utterance_mask bool (B, U)."""
    B, U = len(conversations), max(len(c.utterances) for c in conversations)
    speaker_ids, utterance_mask = np.zeros((B, U), np.int64), np.zeros((B, U), bool)
    for b, conversation in enumerate(conversations):
        n = len(conversation.utterances)
        speaker_ids[b, :n], utterance_mask[b, :n] = speaker_numbers(conversation.utterances), True
    return torch.from_numpy(speaker_ids), torch.from_numpy(utterance_mask)
