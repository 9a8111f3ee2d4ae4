"""Simulated voice, faces and frames for training the fusion on corpora without recordings.

ECF's text comes without its videos. Instead, the voice is real speech from another corpus, the faces are simulated
outputs of the expression network, and the frames are noise without a label: the fusion learns how much to trust each
modality, and that frames are not informative yet. The model card says so.

More often than not the attached emotion is wrong on purpose (`mismatch`). Acted speech is recognised almost without
error, while in real conversations voice and face often disagree with the annotated emotion; a fusion trained without
mismatches follows a wrong voice against clear words. Where the text is dropped, voice and label always agree. Emotions
are recognised in these voices by the voice head, which is fitted beforehand (`mechm.training.voice_head`); the fusion
learns what its output does not cover.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mechm.model.config import ModelConfig
from mechm.model.inputs import NonverbalInputs
from mechm_runtime.types import EMOTIONS, LabelledConversation

EXPRESSION_RECALL = (0.65, 0.6, 0.55, 0.45, 0.87, 0.55, 0.77)
"""Assumed recall of the expression network per emotion, in the order of EMOTIONS: about that of mini-Xception on
FER2013 (66 % overall, Arriaga et al. 2017)."""


@dataclass(frozen=True, slots=True)
class SimulationConfig:
    """Frequencies of simulated modalities (per conversation, then per utterance) and of wrong emotions among them.

    mismatch: share of the utterances with text whose voice or face is of a random emotion. Trained at 0.3, a random
        voice cost 7 points of weighted F1 on ECF dev.
    text_dropout: share of the utterances with a voice whose text is masked.
    voice_mixing: share of the voices that are interpolated between two recordings of the same emotion.
    voice_noise: standard deviation of the noise added to voices, in standard deviations of each feature.
    """

    conversation_rate: float = 0.5
    utterance_rate: float = 0.8
    mismatch: float = 0.7
    text_dropout: float = 0.2
    voice_mixing: float = 0.5
    voice_noise: float = 0.2


class NonverbalSource(Protocol):
    """Source of the fusion's inputs beside text during training."""

    def sample(
        self,
        group: Sequence[LabelledConversation],
        emotions: npt.NDArray[np.int64],
        random: np.random.Generator,
    ) -> tuple[NonverbalInputs, Tensor]:
        """Draw inputs for the utterances of a batch, and choose those whose text is masked.

        group: the batch's B conversations. emotions: int64 (B, U), negative for padding. random: the step's own
            generator, so that a resumed training draws the same values.
        Returns: inputs, text_dropped bool (B, U).
        """


class SimulatedModalities:
    """A `NonverbalSource` that simulates the modalities of annotated utterances.

    speech: emotion -> float32 (recordings, audio tokens, audio width), features of real recordings; may be empty.
    """

    def __init__(
        self,
        model: ModelConfig,
        speech: Mapping[str, npt.NDArray[np.float32]],
        config: SimulationConfig,
    ) -> None:
        self._model = model
        self._speech = {EMOTIONS.index(emotion): features for emotion, features in speech.items() if len(features)}
        self._all_speech = np.concatenate(list(self._speech.values())) if self._speech else None
        self._deviation = None if self._all_speech is None else self._all_speech.std(0)
        self._config = config

    def sample(
        self,
        group: Sequence[LabelledConversation],  # noqa: ARG002 - only the emotions are used
        emotions: npt.NDArray[np.int64],
        random: np.random.Generator,
    ) -> tuple[NonverbalInputs, Tensor]:
        """See `NonverbalSource.sample`."""
        shape = emotions.shape
        real = emotions >= 0
        dropped = random.random(shape) < self._config.text_dropout
        audio, audio_mask = self._audio(emotions, self._attached(real, random), dropped, random)
        face, face_mask = self._faces(emotions, self._attached(real, random), random)
        scene, scene_mask = self._scene(self._attached(real, random), random)
        dropped &= audio_mask
        parts = (audio, audio_mask, scene, scene_mask, face, face_mask)
        return NonverbalInputs(*(torch.from_numpy(part) for part in parts)), torch.from_numpy(dropped)

    def _attached(self, real: npt.NDArray[np.bool_], random: np.random.Generator) -> npt.NDArray[np.bool_]:
        conversations = random.random((len(real), 1)) < self._config.conversation_rate
        return np.asarray(real & conversations & (random.random(real.shape) < self._config.utterance_rate))

    def _audio(
        self,
        emotions: npt.NDArray[np.int64],
        attached: npt.NDArray[np.bool_],
        text_dropped: npt.NDArray[np.bool_],
        random: np.random.Generator,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        n_tokens, width = len(self._model.audio.pooled_layers), 2 * self._model.audio.hidden_size
        audio = np.zeros((*emotions.shape, n_tokens, width), np.float32)
        if self._all_speech is None:
            return audio, np.zeros(emotions.shape, bool)
        mask = attached.copy()
        for at in zip(*np.nonzero(attached), strict=True):
            bank = self._speech.get(int(emotions[at]))
            if not text_dropped[at] and random.random() < self._config.mismatch:
                bank = self._speech[int(random.choice(list(self._speech)))]
            if bank is None:  # no recording of this emotion (EmoDB has no surprise)
                mask[at] = False
            else:
                audio[at] = self._voice(bank, random)
        return audio, mask

    def _voice(self, bank: npt.NDArray[np.float32], random: np.random.Generator) -> npt.NDArray[np.float32]:
        """Draw a recording of the bank, or interpolate two, and add noise, against overfitting to 350 recordings."""
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
        # Frames of one conversation look alike: one draw per conversation, plus a smaller one per utterance and frame.
        common = random.normal(0.0, 1.0, (len(attached), 1, 1, shape[-1]))
        scene = common + random.normal(0.0, 0.5, shape)
        mask = np.broadcast_to(attached[..., None], shape[:3])
        return scene.astype(np.float32), mask.copy()
