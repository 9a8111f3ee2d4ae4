"""Fusion: an utterance's text attends to its voice, faces and frames; utterances attend to each other; two heads.

Absent modalities are masked as attention keys, and an utterance without text uses a learned query. A voice also has a
prediction of its own (`mechm.model.voice`). Values at masked positions have no influence, even if they are NaN. The
module uses plain matrix products and additive masks so that it can be exported as it is.
Sizes: B conversations (or windows), U utterances, N modality tokens, D hidden size, H heads, E emotions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mechm.model.config import ModelConfig
from mechm.model.voice import VoiceHead

MASKED = -1e4
"""Added to masked attention scores: far below any real score, still finite in fp16."""


class FusionOutput(NamedTuple):
    """Output of the fusion.

    emotion_logits: float (B, U, E).
    pair_logits: float (B, U, U); [b, i, j] scores utterance j as a cause of the emotion of utterance i.
    hidden_states: float (B, U, D).
    """

    emotion_logits: Tensor
    pair_logits: Tensor
    hidden_states: Tensor


class Attention(nn.Module):
    """Multi-head attention with an additive score bias."""

    def __init__(self, hidden_size: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.o_proj = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
        """queries (..., Q, D), keys (..., K, D), bias broadcastable to (..., H, Q, K) -> (..., Q, D)."""
        q, k, v = (self._split(p(x)) for p, x in ((self.q_proj, queries), (self.k_proj, keys), (self.v_proj, keys)))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
        mixed = self.dropout(scores.softmax(-1)) @ v
        attended: Tensor = self.o_proj(mixed.transpose(-2, -3).flatten(-2))
        return attended

    def _split(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.n_heads, -1)).transpose(-2, -3)


class UtteranceLayer(nn.Module):
    """Pre-norm transformer layer over utterances; the bias encodes relative position and speaker equality."""

    def __init__(self, hidden_size: int, n_heads: int, intermediate_size: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.attention = Attention(hidden_size, n_heads, dropout)
        self.mlp_norm = nn.LayerNorm(hidden_size)
        self.up_proj = nn.Linear(hidden_size, intermediate_size)
        self.down_proj = nn.Linear(intermediate_size, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x (B, U, D), bias (B, H, U, U) -> (B, U, D)."""
        normed = self.attention_norm(x)
        x = x + self.dropout(self.attention(normed, normed, bias))
        updated: Tensor = x + self.dropout(self.down_proj(F.gelu(self.up_proj(self.mlp_norm(x)))))
        return updated


class PairHead(nn.Module):
    """Scores every (emotion, cause) pair from both states, their distance and whether the speaker is the same."""

    def __init__(self, hidden_size: int, pair_size: int, n_distances: int) -> None:
        super().__init__()
        self.emotion_proj = nn.Linear(hidden_size, pair_size)
        self.cause_proj = nn.Linear(hidden_size, pair_size)
        self.distance = nn.Embedding(n_distances, pair_size)
        self.same_speaker = nn.Embedding(2, pair_size)
        self.score = nn.Linear(pair_size, 1)

    def forward(self, x: Tensor, distances: Tensor, same_speaker: Tensor) -> Tensor:
        """x (B, U, D), distances int (U, U), same_speaker int (B, U, U) -> (B, U, U)."""
        features = self.emotion_proj(x)[:, :, None] + self.cause_proj(x)[:, None]
        features = features + self.distance(distances) + self.same_speaker(same_speaker)
        scores: Tensor = self.score(F.gelu(features))
        return scores.squeeze(-1)


class Fusion(nn.Module):
    """The trained part between the encoders and the decision.

    audio_mean, audio_deviation: buffers (audio_tokens, audio width) that standardise the audio statistics.
    audio_attended: buffer bool (), whether text attends to audio tokens. False where all voices in training came from
        other corpora than the texts: then only `voice_head` uses them.
    """

    audio_mean: Tensor
    audio_deviation: Tensor
    audio_attended: Tensor

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        config = model.fusion
        D = config.hidden_size
        self.config = config
        audio_width = 2 * model.audio.hidden_size
        n_audio = len(model.audio.pooled_layers)
        self.text_proj = nn.Linear(model.text.hidden_size, D)
        self.audio_proj = nn.Linear(audio_width, D)
        self.scene_proj = nn.Linear(model.scene.hidden_size, D)
        self.face_proj = nn.Linear(config.face_width, D)
        self.register_buffer("audio_mean", torch.zeros(n_audio, audio_width))
        self.register_buffer("audio_deviation", torch.ones(n_audio, audio_width))
        self.register_buffer("audio_attended", torch.ones((), dtype=torch.bool))
        self.voice_head = VoiceHead(n_audio * audio_width, config.n_emotions)
        self.audio_layer = nn.Parameter(torch.randn(n_audio, D) * 0.02)
        self.modality = nn.Parameter(torch.randn(3, D) * 0.02)
        self.no_text = nn.Parameter(torch.randn(D) * 0.02)
        self.no_evidence = nn.Parameter(torch.randn(D) * 0.02)
        self.text_norm = nn.LayerNorm(D)
        self.evidence_norm = nn.LayerNorm(D)
        self.cross_attention = Attention(D, config.n_heads, config.dropout)
        n_distances = 2 * config.max_distance + 1
        self.distance_bias = nn.Embedding(n_distances, config.n_heads)
        self.speaker_bias = nn.Embedding(2, config.n_heads)
        self.layers = nn.ModuleList(
            UtteranceLayer(D, config.n_heads, config.intermediate_size, config.dropout) for _ in range(config.n_layers)
        )
        self.final_norm = nn.LayerNorm(D)
        self.dropout = nn.Dropout(config.dropout)
        self.emotion_head = nn.Linear(D, config.n_emotions)
        self.pair_head = PairHead(D, config.pair_size, n_distances)

    def forward(
        self,
        text: Tensor,
        text_mask: Tensor,
        audio: Tensor,
        audio_mask: Tensor,
        scene: Tensor,
        scene_mask: Tensor,
        face: Tensor,
        face_mask: Tensor,
        speaker_ids: Tensor,
        utterance_mask: Tensor,
    ) -> FusionOutput:
        """Fuse a batch of conversations.

        text: float (B, U, text width); text_mask: bool (B, U).
        audio: float (B, U, audio tokens, audio width), mean and deviation over time, one token per pooled layer;
            audio_mask: bool (B, U).
        scene: float (B, U, frames, scene width); scene_mask: bool (B, U, frames).
        face: float (B, U, faces, face width); face_mask: bool (B, U, faces).
        speaker_ids: int64 (B, U), equal where the speaker is; utterance_mask: bool (B, U), False for padding.
        """
        # Absent values may be NaN, which a mask after the projections could not remove.
        standardised = ((audio - self.audio_mean) / self.audio_deviation).masked_fill(~audio_mask[..., None, None], 0.0)
        attended = audio_mask & self.audio_attended
        fused = self._fuse(text, text_mask, standardised, attended, scene, scene_mask, face, face_mask)
        positions = torch.arange(text.shape[1], device=text.device)
        reach = self.config.max_distance
        distances = (positions[None, :] - positions[:, None]).clamp(-reach, reach) + reach
        same_speaker = (speaker_ids[:, :, None] == speaker_ids[:, None, :]).long()
        bias = self.distance_bias(distances)[None] + self.speaker_bias(same_speaker)
        bias = bias.permute(0, 3, 1, 2) + (~utterance_mask).to(text.dtype)[:, None, None, :] * MASKED
        for layer in self.layers:
            fused = layer(fused, bias)
        hidden_states = self.final_norm(fused)
        dropped = self.dropout(hidden_states)
        emotion_logits = self.emotion_head(dropped)
        others = text_mask | face_mask.any(-1)
        voiced = self.voice_head.combine(emotion_logits, self.voice_head(standardised), others)
        has_voice = (audio_mask & self.voice_head.heard.any())[..., None]
        return FusionOutput(
            torch.where(has_voice, voiced, emotion_logits),
            self.pair_head(dropped, distances, same_speaker),
            hidden_states,
        )

    def _fuse(
        self,
        text: Tensor,
        text_mask: Tensor,
        audio: Tensor,
        audio_mask: Tensor,
        scene: Tensor,
        scene_mask: Tensor,
        face: Tensor,
        face_mask: Tensor,
    ) -> Tensor:
        B, U = text_mask.shape
        query = self.text_norm(torch.where(text_mask[..., None], self.text_proj(text), self.no_text))
        tokens = [
            self.no_evidence.expand(B, U, 1, -1),
            self.audio_proj(audio) + self.audio_layer + self.modality[0],
            self.scene_proj(F.layer_norm(scene, scene.shape[-1:])) + self.modality[1],
            self.face_proj(face) + self.modality[2],
        ]
        present = [
            torch.ones_like(text_mask)[..., None],
            audio_mask[..., None].expand(B, U, audio.shape[2]),
            scene_mask,
            face_mask,
        ]
        absent = ~torch.cat(present, 2)
        # Masked tokens are set to zero too, since a weight of zero times NaN would still be NaN.
        keys = self.evidence_norm(torch.cat(tokens, 2)).masked_fill(absent[..., None], 0.0)
        bias = absent.to(text.dtype)[:, :, None, None, :] * MASKED
        attended = self.cross_attention(query[:, :, None], keys, bias)
        fused: Tensor = query + self.dropout(attended.squeeze(2))
        return fused
