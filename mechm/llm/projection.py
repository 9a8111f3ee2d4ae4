"""From voices, faces and frames to the Llama's soft tokens: the fusion without words, then the projector.

`mechm_runtime.llm.soft_tokens` does the same with exported graphs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mechm.data.simulated_modalities import Evidence
from mechm.model.fusion import Fusion, FusionOutput
from mechm.model.projector import SoftTokenProjector
from mechm_runtime.fusion.inputs import speaker_numbers
from mechm_runtime.types import Conversation


class Projection(nn.Module):
    """A frozen fusion and the projector behind it.

    text_size: width of the text vectors that the fusion takes, none of which it is given here.
    """

    def __init__(self, fusion: Fusion, text_size: int, projector: SoftTokenProjector) -> None:
        super().__init__()
        self.fusion = fusion.eval().requires_grad_(False)
        self.text_size = text_size
        self.projector = projector

    def forward(self, evidence: Evidence, speaker_ids: Tensor, utterance_mask: Tensor) -> tuple[Tensor, Tensor]:
        """speaker_ids int64 (B, U), utterance_mask bool (B, U), as `Fusion.forward` takes them.

        Returns: soft tokens float32 (B, U, soft tokens, D), and bool (B, U), where there is anything to tell.
        """
        with torch.no_grad():
            output: FusionOutput = self.fusion(
                torch.zeros(*speaker_ids.shape, self.text_size, device=speaker_ids.device),
                torch.zeros_like(utterance_mask),
                evidence.audio,
                evidence.audio_mask,
                evidence.scene,
                evidence.scene_mask,
                evidence.face,
                evidence.face_mask,
                speaker_ids,
                utterance_mask,
            )
        evident = evidence.audio_mask | evidence.face_mask.any(-1) | evidence.scene_mask.any(-1)
        tokens: Tensor = self.projector(output.hidden_states, output.emotion_logits)
        return tokens, evident & utterance_mask


def speakers_of(conversations: Sequence[Conversation]) -> tuple[Tensor, Tensor]:
    """Who speaks in each of B conversations, padded: speaker_ids int64 (B, U), utterance_mask bool (B, U)."""
    B, U = len(conversations), max(len(c.utterances) for c in conversations)
    speaker_ids, utterance_mask = np.zeros((B, U), np.int64), np.zeros((B, U), bool)
    for b, conversation in enumerate(conversations):
        n = len(conversation.utterances)
        speaker_ids[b, :n], utterance_mask[b, :n] = speaker_numbers(conversation.utterances), True
    return torch.from_numpy(speaker_ids), torch.from_numpy(utterance_mask)
