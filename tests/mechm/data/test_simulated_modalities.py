"""Drawn evidence: at the configured rates, from the right recordings, masked where nothing is drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mechm.data.simulated_modalities import EXPRESSION_RECALL, SimulatedModalities, SimulationConfig
from mechm.model.config import SMALL, TINY
from mechm.model.inputs import NonverbalInputs
from mechm_runtime.types import EMOTIONS

ALWAYS = SimulationConfig(
    conversation_rate=1.0, utterance_rate=1.0, mismatch=0.0, text_dropout=0.0, voice_mixing=0.0, voice_noise=0.0
)
TOKENS, WIDTH = len(TINY.audio.pooled_layers), 2 * TINY.audio.hidden_size


def bank(*emotions: str) -> dict[str, npt.NDArray[np.float32]]:
    """Five recordings an emotion, each filled with its emotion's index."""
    return {e: np.full((5, TOKENS, WIDTH), EMOTIONS.index(e), np.float32) for e in emotions}


def sample(
    emotions: npt.NDArray[np.int64],
    config: SimulationConfig = ALWAYS,
    speech: dict[str, npt.NDArray[np.float32]] | None = None,
    seed: int = 0,
) -> tuple[NonverbalInputs, torch.Tensor]:
    speech = bank(*EMOTIONS[:-1]) if speech is None else speech
    return SimulatedModalities(TINY, speech, config).sample((), emotions, np.random.default_rng(seed))


def random_emotions(conversations: int = 200, utterances: int = 10) -> npt.NDArray[np.int64]:
    return np.random.default_rng(1).integers(0, len(EMOTIONS), (conversations, utterances))


def test_voices_are_of_the_annotated_emotion() -> None:
    emotions = random_emotions()
    evidence, _ = sample(emotions)
    voiced = emotions != EMOTIONS.index("surprise")  # of which there is no recording
    assert np.array_equal(evidence.audio_mask.numpy(), voiced)
    assert (evidence.audio[..., 0, 0].numpy() == emotions)[voiced].all()
    assert not evidence.audio[~torch.from_numpy(voiced)].any()


def test_wrong_voices_come_as_often_as_configured() -> None:
    emotions = np.full((300, 20), EMOTIONS.index("anger"))
    evidence, _ = sample(emotions, replace(ALWAYS, mismatch=0.3))
    wrong = (evidence.audio[..., 0, 0].numpy() != emotions).mean()
    assert wrong == pytest.approx(0.3 * 5 / 6, abs=0.02)  # one of six emotions drawn is the right one


def test_a_voice_without_text_is_never_wrong() -> None:
    emotions = np.full((100, 20), EMOTIONS.index("anger"))
    evidence, dropped = sample(emotions, replace(ALWAYS, mismatch=1.0, text_dropout=0.5))
    heard = evidence.audio[..., 0, 0].numpy()
    assert (heard[dropped.numpy()] == EMOTIONS.index("anger")).all()
    assert (heard[~dropped.numpy()] != EMOTIONS.index("anger")).mean() > 0.7


def test_voices_blend_within_their_emotion_and_carry_noise() -> None:
    recordings = np.random.default_rng(2).normal(5.0, 1.0, (8, TOKENS, WIDTH)).astype(np.float32)
    emotions = np.full((100, 20), EMOTIONS.index("anger"))
    blended, _ = sample(emotions, replace(ALWAYS, voice_mixing=1.0), {"anger": recordings})
    heard = blended.audio.numpy()
    assert (heard <= recordings.max(0) + 1e-5).all()
    assert (heard >= recordings.min(0) - 1e-5).all()
    assert len(np.unique(heard[..., 0, 0])) > len(recordings)
    noisy, _ = sample(emotions, replace(ALWAYS, voice_noise=0.2), {"anger": recordings})
    exact = recordings[np.abs(noisy.audio.numpy().reshape(-1, 1, TOKENS, WIDTH) - recordings).sum((2, 3)).argmin(1)]
    relative = (noisy.audio.numpy().reshape(exact.shape) - exact) / recordings.std(0)
    assert relative.std() == pytest.approx(0.2, abs=0.02)


def test_evidence_is_attached_as_often_as_configured() -> None:
    emotions = np.zeros((800, 12), np.int64)
    config = SimulationConfig(conversation_rate=0.5, utterance_rate=0.8, mismatch=0.0, text_dropout=0.25)
    evidence, dropped = sample(emotions, config)
    for mask in (evidence.audio_mask, evidence.scene_mask[..., 0]):
        attached = mask.numpy()
        assert attached.any(1).mean() == pytest.approx(0.5, abs=0.06)
        assert attached[attached.any(1)].mean() == pytest.approx(0.8, abs=0.02)
    # Text is dropped only where there is a voice to go by.
    assert not (dropped & ~evidence.audio_mask).any()
    assert dropped.sum() / evidence.audio_mask.sum() == pytest.approx(0.25, abs=0.03)


def test_faces_are_read_rightly_as_often_as_the_expression_network_does() -> None:
    for index, recall in enumerate(EXPRESSION_RECALL):
        evidence, _ = sample(np.full((100, 20), index))
        faces = evidence.face[evidence.face_mask].numpy()
        probabilities = faces[:, : len(EMOTIONS)]
        assert np.allclose(probabilities.sum(-1), 1, atol=1e-5)
        assert ((faces[:, -1] > 0) & (faces[:, -1] < 1)).all()
        # A reading is right by recall or by chance; the noise on the scores turns a few over.
        expected = recall + (1 - recall) / len(EMOTIONS)
        assert (probabilities.argmax(-1) == index).mean() == pytest.approx(expected, abs=0.08)


def test_frames_of_one_conversation_look_alike() -> None:
    evidence, _ = sample(np.zeros((6, 5), np.int64))
    frames = evidence.scene.flatten(1, 2).mean(1)
    within = (evidence.scene.flatten(1, 2) - frames[:, None]).std()
    assert within < 0.7 * frames.std()


def test_padding_gets_no_evidence() -> None:
    emotions = random_emotions(20, 6)
    emotions[:, 4:] = -100
    evidence, dropped = sample(emotions, replace(ALWAYS, text_dropout=1.0))
    for mask in (evidence.audio_mask, evidence.scene_mask, evidence.face_mask, dropped):
        assert not mask[:, 4:].any()
        assert mask[:, :4].any()


def test_without_recordings_nobody_has_a_voice() -> None:
    for speech in ({}, {"joy": np.zeros((0, TOKENS, WIDTH), np.float32)}):
        evidence, dropped = sample(random_emotions(4), speech=speech)
        assert not evidence.audio_mask.any()
        assert not dropped.any()


def test_the_seed_decides() -> None:
    emotions = random_emotions(5)
    config = SimulationConfig()
    one, again, other = (sample(emotions, config, seed=seed)[0] for seed in (7, 7, 8))
    assert all(torch.equal(getattr(one, name), getattr(again, name)) for name in NonverbalInputs.__slots__)
    assert not torch.equal(one.scene, other.scene)


def test_no_evidence_has_the_same_shapes_and_masks_everything() -> None:
    for model in (TINY, SMALL):
        absent = NonverbalInputs.absent(model, (2, 3))
        drawn, _ = SimulatedModalities(model, {}, ALWAYS).sample(
            (), np.zeros((2, 3), np.int64), np.random.default_rng(0)
        )
        for name in NonverbalInputs.__slots__:
            assert getattr(absent, name).shape == getattr(drawn, name).shape
            assert getattr(absent, name).dtype == getattr(drawn, name).dtype
        assert not any(mask.any() for mask in (absent.audio_mask, absent.scene_mask, absent.face_mask))
        assert absent.to(torch.device("meta")).face.device.type == "meta"
