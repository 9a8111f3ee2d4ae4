"""Voice, faces and frames for training the fusion where no aligned recordings are at hand.

ECF's text comes without its videos. Voice is real speech of the same emotion from another corpus, faces are simulated
readings of the expression network, frames are noise that carries no label: the fusion learns how much to trust each
and that frames say nothing yet. The model card says so. What is attached to a text is wrong on purpose more often than
not (`mismatch`): acted speech is read almost without error, in a real conversation voice and face often disagree with
the annotated emotion, and a fusion that was never misled follows a strange voice against plain words. An utterance read
from its voice alone is a recording with its own, true label. What these voices mean is read by the voice head, which is
fitted on them before (`mechm.training.voice_head`); the fusion learns what is left to tell beside its opinion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mechm.model.config import ModelConfig
from mechm_runtime.types import EMOTIONS, LabelledConversation

EXPRESSION_RECALL = (0.65, 0.6, 0.55, 0.45, 0.87, 0.55, 0.77)
"""Recall per emotion (order of EMOTIONS) assumed for the expression network: about what mini-Xception reaches on
FER2013 (66 % overall, Arriaga et al. 2017)."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the fusion gets beside text; shapes and dtypes as in `Fusion.forward`."""

    audio: Tensor
    audio_mask: Tensor
    scene: Tensor
    scene_mask: Tensor
    face: Tensor
    face_mask: Tensor

    def to(self, device: torch.device) -> Evidence:
        """The same evidence on a device."""
        return Evidence(*(getattr(self, item.name).to(device) for item in fields(self)))


@dataclass(frozen=True, slots=True)
class EvidenceConfig:
    """How often a modality is attached (by conversation, then by utterance) and how often it is wrong.

    mismatch: share of the utterances with text whose voice or face is of any emotion. At 0.3 a random voice cost 7
        points of weighted F1 on ECF dev.
    text_dropout: share of the utterances with a voice that are read without their text.
    voice_mixing: share of the voices that blend two recordings of the same emotion.
    voice_noise: deviation of the noise on voices, in deviations of the feature.
    """

    conversation_rate: float = 0.5
    utterance_rate: float = 0.8
    mismatch: float = 0.7
    text_dropout: float = 0.2
    voice_mixing: float = 0.5
    voice_noise: float = 0.2


class EvidenceSource(Protocol):
    """Where training gets evidence from."""

    def sample(
        self,
        group: Sequence[LabelledConversation],
        emotions: npt.NDArray[np.int64],
        random: np.random.Generator,
    ) -> tuple[Evidence, Tensor]:
        """Evidence for the utterances of a batch, and which of them are to be read without their text.

        group: the batch's B conversations. emotions: int64 (B, U), negative for padding. random: the step's own, so
            that a training that goes on after a stop draws what it would have drawn.
        Returns: evidence, text_dropped bool (B, U).
        """


class EvidenceSampler:
    """Draws evidence for annotated utterances.

    speech: emotion -> float32 (recordings, audio tokens, audio width), features of real recordings; may be empty.
    """

    def __init__(
        self,
        model: ModelConfig,
        speech: Mapping[str, npt.NDArray[np.float32]],
        config: EvidenceConfig,
    ) -> None:
        self._model = model
        self._speech = {EMOTIONS.index(emotion): features for emotion, features in speech.items() if len(features)}
        self._all_speech = np.concatenate(list(self._speech.values())) if self._speech else None
        self._deviation = None if self._all_speech is None else self._all_speech.std(0)
        self._config = config

    def sample(
        self,
        group: Sequence[LabelledConversation],  # noqa: ARG002 - what is drawn depends on the emotions alone
        emotions: npt.NDArray[np.int64],
        random: np.random.Generator,
    ) -> tuple[Evidence, Tensor]:
        """See `EvidenceSource.sample`."""
        shape = emotions.shape
        real = emotions >= 0
        dropped = random.random(shape) < self._config.text_dropout
        audio, audio_mask = self._audio(emotions, self._attached(real, random), dropped, random)
        face, face_mask = self._faces(emotions, self._attached(real, random), random)
        scene, scene_mask = self._scene(self._attached(real, random), random)
        dropped &= audio_mask
        parts = (audio, audio_mask, scene, scene_mask, face, face_mask)
        return Evidence(*(torch.from_numpy(part) for part in parts)), torch.from_numpy(dropped)

    def _attached(self, real: npt.NDArray[np.bool_], random: np.random.Generator) -> npt.NDArray[np.bool_]:
        conversations = random.random((len(real), 1)) < self._config.conversation_rate
        return np.asarray(real & conversations & (random.random(real.shape) < self._config.utterance_rate))

    def _audio(
        self,
        emotions: npt.NDArray[np.int64],
        attached: npt.NDArray[np.bool_],
        alone: npt.NDArray[np.bool_],
        random: np.random.Generator,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        n_tokens, width = len(self._model.audio.pooled_layers), 2 * self._model.audio.hidden_size
        audio = np.zeros((*emotions.shape, n_tokens, width), np.float32)
        if self._all_speech is None:
            return audio, np.zeros(emotions.shape, bool)
        mask = attached.copy()
        for at in zip(*np.nonzero(attached), strict=True):
            bank = self._speech.get(int(emotions[at]))
            if not alone[at] and random.random() < self._config.mismatch:
                bank = self._speech[int(random.choice(list(self._speech)))]
            if bank is None:  # no recording of this emotion (EmoDB has no surprise)
                mask[at] = False
            else:
                audio[at] = self._voice(bank, random)
        return audio, mask

    def _voice(self, bank: npt.NDArray[np.float32], random: np.random.Generator) -> npt.NDArray[np.float32]:
        """A recording of the bank, or between two of them, with noise: 350 recordings are soon known by heart."""
        one, other = bank[random.integers(len(bank), size=2)]
        share = random.random() if random.random() < self._config.voice_mixing else 1.0
        noise = random.normal(0.0, self._config.voice_noise, one.shape) * self._deviation
        return np.asarray(share * one + (1 - share) * other + noise, np.float32)

    def _faces(
        self, emotions: npt.NDArray[np.int64], attached: npt.NDArray[np.bool_], random: np.random.Generator
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        n_faces = self._model.n_frames * self._model.max_faces
        shape = (*emotions.shape, n_faces)
        n_classes = len(EMOTIONS)
        wrong = random.random(emotions.shape) < self._config.mismatch
        shown = np.where(wrong, random.integers(0, n_classes, emotions.shape), np.maximum(emotions, 0))
        shown = np.broadcast_to(shown[..., None], shape)
        recalled = random.random(shape) < np.asarray(EXPRESSION_RECALL)[shown]
        read = np.where(recalled, shown, random.integers(0, n_classes, shape))
        scores = random.normal(0.0, 1.0, (*shape, n_classes)) + 3.0 * np.eye(n_classes)[read]
        probabilities = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        height = random.uniform(0.1, 0.7, (*shape, 1))
        face = np.concatenate([probabilities, height], -1).astype(np.float32)
        return face, attached[..., None] & (random.random(shape) < 0.5)

    def _scene(
        self, attached: npt.NDArray[np.bool_], random: np.random.Generator
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        shape = (*attached.shape, self._model.n_frames, self._model.scene.hidden_size)
        # Frames of one conversation look alike: one draw a conversation plus a little an utterance and frame.
        common = random.normal(0.0, 1.0, (len(attached), 1, 1, shape[-1]))
        scene = common + random.normal(0.0, 0.5, shape)
        mask = np.broadcast_to(attached[..., None], shape[:3])
        return scene.astype(np.float32), mask.copy()


def no_evidence(model: ModelConfig, shape: tuple[int, int]) -> Evidence:
    """Evidence for text alone: everything masked.

    shape: (B, U).
    """
    n_audio, n_faces = len(model.audio.pooled_layers), model.n_frames * model.max_faces
    return Evidence(
        torch.zeros(*shape, n_audio, 2 * model.audio.hidden_size),
        torch.zeros(shape, dtype=torch.bool),
        torch.zeros(*shape, model.n_frames, model.scene.hidden_size),
        torch.zeros(*shape, model.n_frames, dtype=torch.bool),
        torch.zeros(*shape, n_faces, model.fusion.face_width),
        torch.zeros(*shape, n_faces, dtype=torch.bool),
    )
