"""The voice head: its fit is discriminant analysis, its opinion is bounded beside words and decides alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mechm.model.build import build_audio_encoder
from mechm.model.config import SMALL, TINY
from mechm.model.fusion import Fusion
from mechm.model.voice import VoiceHead
from mechm.training.speech import SpeechFeatures, read_speech, read_speech_corpus
from mechm.training.voice_head import (
    VoiceConfig,
    best_temperature,
    check_speech,
    fit_discriminant,
    fit_voice,
    principal_components,
    speaker_folds,
)
from mechm_runtime.bundle.config import DecisionConfig
from mechm_runtime.errors import InputError
from mechm_runtime.fusion.decision import emotion_probabilities
from mechm_runtime.types import EMOTIONS

TOKENS, WIDTH = len(TINY.audio.pooled_layers), 2 * TINY.audio.hidden_size
SURPRISE = EMOTIONS.index("surprise")
HEARD = tuple(range(SURPRISE))


def speech(
    n_each: int = 12, copies: int = 2, emotions: tuple[int, ...] = HEARD, speakers: int = 4, seed: int = 0
) -> SpeechFeatures:
    """Gaussian clouds around a centre for each emotion; speakers add their own offset, copies a little noise."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(1).normal(0, 0.5, (len(EMOTIONS), TOKENS, WIDTH))
    labels = np.repeat(np.array(emotions, np.int64), n_each)
    who = np.tile(np.arange(n_each) % speakers, len(emotions))
    offsets = random.normal(0, 0.3, (speakers, TOKENS, WIDTH))
    clean = 3.0 + centres[labels] + offsets[who] + random.normal(0, 1, (len(labels), TOKENS, WIDTH))
    noise = random.normal(0, 0.2, (copies + 1, *clean.shape))
    noise[0] = 0.0
    return SpeechFeatures((clean + noise).astype(np.float32), labels, tuple(f"s{index}" for index in who))


@pytest.fixture
def fusion() -> Fusion:
    torch.manual_seed(2)
    return Fusion(TINY).eval()


def head(doubt: float, heard: tuple[int, ...] = HEARD) -> VoiceHead:
    made = VoiceHead(4, len(EMOTIONS))
    made.heard[list(heard)] = True
    made.doubt.fill_(doubt)
    return made


def test_the_fit_is_linear_discriminant_analysis() -> None:
    data = speech(n_each=60, copies=0)
    config = VoiceConfig(n_components=(TOKENS * WIDTH,), shrinkage=1e-6)
    fit = fit_discriminant(data, config)
    flat = (data.tokens[0].reshape(len(data.emotions), -1).astype(np.float64) - fit.mean) / fit.deviation
    means = np.stack([flat[data.emotions == e].mean(0) for e in HEARD])
    covariance = np.mean([np.cov(flat[data.emotions == e].T, bias=True) for e in HEARD], 0)
    # Gaussian log-densities with one covariance, from their definition.
    around = flat[:, None] - means
    densities = -0.5 * np.einsum("nei,ij,nej->ne", around, np.linalg.inv(covariance), around)
    expected = densities - np.log(np.exp(densities - densities.max(-1, keepdims=True)).sum(-1, keepdims=True))
    expected -= densities.max(-1, keepdims=True)
    found = fit.log_probabilities(data.tokens[0])
    assert np.isneginf(found[:, SURPRISE]).all()
    assert np.abs(found[:, :SURPRISE] - expected).max() < 0.02


def test_several_counts_of_components_are_averaged() -> None:
    data, width = speech(), TOKENS * WIDTH
    few, all_of_them, both = (
        fit_discriminant(data, VoiceConfig(n_components=counts))
        for counts in ((width - 30,), (width,), (width - 30, width))
    )
    assert np.abs(few.weight - all_of_them.weight).max() > 1e-2
    assert np.abs(both.weight - (few.weight + all_of_them.weight) / 2).max() < 1e-4
    assert np.abs(both.bias - (few.bias + all_of_them.bias) / 2).max() < 1e-4


def test_components_beyond_the_width_are_left_out() -> None:
    data, width = speech(), TOKENS * WIDTH
    wide = fit_discriminant(data, VoiceConfig(n_components=(width, width + 300)))
    exact = fit_discriminant(data, VoiceConfig(n_components=(width,)))
    assert np.abs(wide.weight - exact.weight).max() < 1e-9


@pytest.mark.parametrize("counts", [(), (0,), (10, -1)])
def test_no_components_are_refused(counts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="count"):
        VoiceConfig(n_components=counts)


def test_randomised_components_span_what_exact_ones_span() -> None:
    random = np.random.default_rng(0)
    low_rank = (random.normal(size=(200, 10)) @ random.normal(size=(10, 90))).astype(np.float32)
    noisy = low_rank + random.normal(0, 0.01, low_rank.shape).astype(np.float32)
    found = principal_components(noisy, 10)
    exact = np.linalg.svd(noisy, full_matrices=False)[2][:10].T
    assert found.shape == (90, 10)
    assert np.abs(found.T @ found - np.eye(10)).max() < 1e-4
    assert np.abs(found @ found.T - exact @ exact.T).max() < 1e-2


def test_the_fused_head_says_what_the_fit_says(fusion: Fusion) -> None:
    data = speech()
    temperature = fit_voice(fusion, data, VoiceConfig())
    expected = fit_discriminant(data, VoiceConfig()).log_probabilities(data.tokens[0], temperature)
    standardised = (torch.from_numpy(data.tokens[0]) - fusion.audio_mean) / fusion.audio_deviation
    found = fusion.voice_head(standardised).numpy()
    assert np.abs(found - expected)[:, :SURPRISE].max() < 1e-3
    assert found[:, SURPRISE].max() < -5000
    assert not fusion.audio_attended


def test_a_fit_is_the_same_from_run_to_run(fusion: Fusion) -> None:
    fit_voice(fusion, speech(), VoiceConfig())
    before = {name: value.clone() for name, value in fusion.voice_head.state_dict().items()}
    fit_voice(fusion, speech(), VoiceConfig())
    assert all(torch.equal(before[name], value) for name, value in fusion.voice_head.state_dict().items())


def test_no_emotion_counts_more_for_being_frequent() -> None:
    data = speech(n_each=40)
    rare = np.ones(len(data.emotions), bool)
    rare[np.flatnonzero(data.emotions == 0)[8:]] = False
    found = fit_discriminant(data.select(rare), VoiceConfig()).log_probabilities(speech(40, seed=3).tokens[0])
    shares = np.bincount(found.argmax(-1), minlength=7)[:6] / len(found)
    assert shares[0] > 0.08  # a sixth would be its due; by its frequency it would be 3 %


def test_the_temperature_makes_probabilities_as_sure_as_they_are_right() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (20_000, 6))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    emotions = (probabilities.cumsum(-1) > random.random((len(logits), 1))).argmax(-1)
    unheard = np.full((len(logits), 1), -np.inf)
    sure = np.concatenate([3.0 * np.log(probabilities), unheard], -1)
    assert best_temperature(sure, emotions) == pytest.approx(3.0, rel=0.1)


def test_every_speaker_is_left_out_once() -> None:
    folds = speaker_folds(("b", "a", "c", "a", "e", "d"), 3)
    assert np.array_equal(np.sum(folds, 0), np.ones(6))
    assert all(len({fold[1], fold[3]}) == 1 for fold in folds)  # both of speaker a
    assert len(speaker_folds(("a", "b"), 4)) == 2


ONE_ANGER = speech(n_each=4, emotions=(0, 1)).select(np.array([1, 1, 1, 1, 1, 0, 0, 0], bool))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (speech(speakers=1), "1 speakers"),
        (speech(emotions=(0,)), "1 emotions"),
        (
            speech(n_each=4, emotions=(0, 1)).select(np.array([1, 1, 1, 1, 1, 0, 0, 0], bool)),
            "one recording only of anger",
        ),
    ],
)
def test_too_little_speech_is_refused(data: SpeechFeatures, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_speech(data)


def test_alone_the_voice_decides_between_what_it_knows_and_leaves_the_rest() -> None:
    logits, opinion = torch.randn(5, 7), torch.randn(5, 7)
    opinion[:, SURPRISE] = -1e4
    opinion = opinion.log_softmax(-1)
    before, after = logits.softmax(-1), head(0.8).combine(logits, opinion, torch.zeros(5, dtype=torch.bool)).softmax(-1)
    assert torch.allclose(after[:, SURPRISE], before[:, SURPRISE], atol=1e-6)
    within = after[:, :SURPRISE] / after[:, :SURPRISE].sum(-1, keepdim=True)
    assert (within - opinion.exp()[:, :SURPRISE]).abs().max() < 2e-3


def test_the_decision_that_follows_leaves_a_voice_alone_its_opinion() -> None:
    decision = DecisionConfig(emotion_temperature=1.7, emotion_bias=(0.6, 0.2, -0.8, -0.5, 0.1, 0.0, 0.3))
    logits, opinion = torch.randn(6, 7), torch.randn(6, 7)
    opinion[:, SURPRISE] = -1e4
    opinion = opinion.log_softmax(-1)
    made = head(0.8)
    made.set_calibration(decision)
    weighed = made.combine(logits, opinion, torch.zeros(6, dtype=torch.bool)).numpy()
    before, after = emotion_probabilities(logits.numpy(), decision), emotion_probabilities(weighed, decision)
    assert np.abs(after[:, SURPRISE] - before[:, SURPRISE]).max() < 1e-6
    within = after[:, :SURPRISE] / after[:, :SURPRISE].sum(-1, keepdims=True)
    assert np.abs(within - opinion.exp().numpy()[:, :SURPRISE]).max() < 2e-3


@pytest.mark.parametrize("doubt", [0.1, 0.5, 0.8, 1.0])
def test_beside_words_a_voice_changes_odds_by_a_bounded_factor(doubt: float) -> None:
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    opinion = torch.full((50, 7), -1e4)
    opinion[:, 1] = 0.0  # entirely sure of anger
    before, after = (
        logits.softmax(-1),
        head(doubt).combine(logits, opinion, torch.ones(50, dtype=torch.bool)).softmax(-1),
    )
    raised = (after[:, 1] / after[:, 0]) / (before[:, 1] / before[:, 0])
    assert torch.allclose(raised, torch.full((50,), (1 - doubt) * 6 / doubt + 1), rtol=1e-3)
    assert torch.allclose(after[:, SURPRISE], before[:, SURPRISE], atol=1e-6)
    assert torch.allclose(after.sum(-1), torch.ones(50), atol=1e-5)


def test_a_head_that_was_never_fitted_knows_nothing() -> None:
    silent = VoiceHead(4, 7)
    assert torch.allclose(silent(torch.randn(3, 2, 2)), torch.full((3, 7), 1 / 7).log(), atol=1e-3)


@pytest.mark.weights
def test_speakers_left_out_of_real_recordings_are_understood(mechm_data: Path, small_weights: Path) -> None:
    """Two folds of benchmarks/voice.py, without degraded copies, which take the time."""
    recordings = read_speech_corpus(mechm_data / "data" / "emodb").items
    encoder = build_audio_encoder(SMALL, small_weights / "audio")
    data, problems = read_speech(recordings, encoder)
    assert not problems
    right = []
    for speaker in ("13", "14"):
        left_out = data.of([speaker])
        found = fit_discriminant(data.select(~left_out), VoiceConfig()).log_probabilities(data.tokens[0, left_out])
        right.append(found.argmax(-1) == data.emotions[left_out])
    assert np.concatenate(right).mean() > 0.78
