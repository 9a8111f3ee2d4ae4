"""Inputs of the trainable network as tensors: padded text windows with targets, and the other modalities beside them.

It makes no batch and draws no modality; `mechm.data` does.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from mechm.model.config import ModelConfig

IGNORED = -100
"""Emotion of padding: torch's default `ignore_index` of the cross-entropy."""


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Padded conversations: B conversations, U utterances, W text windows, T tokens.

    input_ids, attention_mask: int64 (W, T). token_utterance: int64 (W, T), row of the flattened (B * U) utterances a
    token belongs to, B * U for tokens that count for none. text_mask, utterance_mask: bool (B, U).
    speaker_ids: int64 (B, U). emotions: int64 (B, U), IGNORED for padding.
    causes: float (B, U, U), 1 where j is a cause of i's emotion; cause_mask: bool (B, U, U), where that is annotated.
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_utterance: Tensor
    text_mask: Tensor
    utterance_mask: Tensor
    speaker_ids: Tensor
    emotions: Tensor
    causes: Tensor
    cause_mask: Tensor

    def to(self, device: torch.device) -> TextBatch:
        """Return the same batch on a device."""
        return TextBatch(*(getattr(self, item.name).to(device) for item in fields(self)))


@dataclass(frozen=True, slots=True)
class NonverbalInputs:
    """The fusion's inputs beside text (voice, scene and faces); shapes and dtypes as in `Fusion.forward`."""

    audio: Tensor
    audio_mask: Tensor
    scene: Tensor
    scene_mask: Tensor
    face: Tensor
    face_mask: Tensor

    @classmethod
    def absent(cls, model: ModelConfig, shape: tuple[int, int]) -> NonverbalInputs:
        """Inputs for text alone: zeros, and every mask False.

        shape: (B, U).
        """
        n_audio, n_faces = len(model.audio.pooled_layers), model.n_frames * model.max_faces
        return cls(
            torch.zeros(*shape, n_audio, 2 * model.audio.hidden_size),
            torch.zeros(shape, dtype=torch.bool),
            torch.zeros(*shape, model.n_frames, model.scene.hidden_size),
            torch.zeros(*shape, model.n_frames, dtype=torch.bool),
            torch.zeros(*shape, n_faces, model.fusion.face_width),
            torch.zeros(*shape, n_faces, dtype=torch.bool),
        )

    def to(self, device: torch.device) -> NonverbalInputs:
        """Return the same inputs on a device."""
        return NonverbalInputs(*(getattr(self, item.name).to(device) for item in fields(self)))
