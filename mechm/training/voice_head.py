"""Fits the voice head on emotional speech before the fusion is trained: averaged linear discriminants with shrinkage.

There are some hundred recordings of few speakers. Measured on left-out speakers (EmoDB, benchmarks/voice.py), the
method with the strongest assumption did best: every emotion is a Gaussian, and all share one covariance, estimated over
the recordings and their degraded copies, so that directions changed by noise, telephone lines, tempo and rooms count
little. Regularised logistic regression was 4 points lower, a Gaussian kernel 1 to 4, ensembles of small networks with
dropout and mixup 2. The fit is in closed form and the same from run to run.

The best number of principal components depends on the random copies, so discriminants over several numbers are
averaged. The average is again one linear map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from mechm.model.fusion import Fusion
from mechm.training.speech import SpeechFeatures
from mechm_runtime.errors import InputError
from mechm_runtime.system.arrays import log_softmax
from mechm_runtime.types import EMOTIONS

Float = npt.NDArray[np.float64]

TEMPERATURES = np.geomspace(0.25, 8.0, 61)


@dataclass(frozen=True, slots=True)
class VoiceConfig:
    """Hyperparameters of the head, measured by `benchmarks/voice.py`.

    n_components: numbers of principal components of the standardised audio tokens, one for each discriminant.
        Compared with 200 alone, they raised recall on undegraded recordings in each of seven overlapping sets of
        copies, from 0.880 on average (0.871 to 0.890) to 0.889 (0.879 to 0.898), and over ten degradations from 0.835
        to 0.839. With fewer copies or other degradations a similar average gained 0.2 points on average, and lost in
        some sets.
    shrinkage: share of the covariance that is replaced by an isotropic one (Friedman 1989).
    n_folds: groups of speakers that are left out in turn to fit the head's temperature.
    doubt: assumed probability that a voice beside text or faces is unrelated to the annotated emotion. On ECF dev, with
        voices of left-out speakers: at 0.85 matching ones raise weighted F1 from 0.346 to 0.386 and random ones cost
        0.1 points, at 0.8 0.395 and 0.6 points, at 0.6 0.423 and 1.3 points.
    """

    n_components: tuple[int, ...] = (100, 150, 200, 300, 400)
    shrinkage: float = 0.3
    n_folds: int = 4
    doubt: float = 0.85

    def __post_init__(self) -> None:
        counts = min(self.n_components, default=0) >= 1 and self.n_folds >= 2
        if not (counts and 0 < self.shrinkage <= 1 and 0 < self.doubt <= 1):
            raise ValueError(f"{self}: no count, a count below one or a share outside (0, 1]")


@dataclass(frozen=True, slots=True)
class VoiceFit:
    """A fitted head.

    mean, deviation: float32 (audio tokens * audio width,), which standardise audio tokens.
    weight: float64 (audio tokens * audio width, emotions); bias: float64 (emotions,); zeros for absent emotions.
    heard: bool (emotions,), emotions with a recording.
    """

    mean: npt.NDArray[np.float32]
    deviation: npt.NDArray[np.float32]
    weight: Float
    bias: Float
    heard: npt.NDArray[np.bool_]

    def log_probabilities(self, tokens: npt.NDArray[np.float32], temperature: float = 1.0) -> Float:
        """tokens float32 (n, audio tokens, audio width) -> float64 (n, emotions), -inf for emotions not heard."""
        flat = (tokens.reshape(len(tokens), -1) - self.mean) / self.deviation
        logits = np.where(self.heard, (flat @ self.weight + self.bias) / temperature, -np.inf)
        return log_softmax(logits)


def fit_voice(fusion: Fusion, speech: SpeechFeatures, config: VoiceConfig) -> float:
    """Fit the fusion's voice head and the standardisation of its audio tokens; returns the head's temperature.

    It disables the text's attention to audio tokens (`Fusion.audio_attended`), since these voices belong to no text;
    enable it again where the fusion is trained on its conversations' own recordings.
    Raises: InputError: fewer than two speakers or emotions, or an emotion with a single recording.
    """
    check_speech(speech)
    fit = fit_discriminant(speech, config)
    temperature = fit_temperature(speech, config)
    head, shape = fusion.voice_head, fusion.audio_mean.shape
    fusion.audio_mean.copy_(torch.from_numpy(fit.mean.reshape(shape)))
    fusion.audio_deviation.copy_(torch.from_numpy(fit.deviation.reshape(shape)))
    head.weight.copy_(torch.from_numpy(fit.weight / temperature))
    head.bias.copy_(torch.from_numpy(fit.bias / temperature))
    head.heard.copy_(torch.from_numpy(fit.heard))
    head.doubt.fill_(config.doubt)
    fusion.audio_attended.fill_(False)
    return temperature


def check_speech(speech: SpeechFeatures) -> None:
    """Raises: InputError: fewer than two speakers or emotions, or an emotion with a single recording."""
    counts = np.bincount(speech.emotions, minlength=len(EMOTIONS))
    n_speakers = len(set(speech.speakers))
    if n_speakers < 2 or (counts > 0).sum() < 2:
        raise InputError(
            f"speech of {n_speakers} speakers and {(counts > 0).sum()} emotions",
            hint="the voice head needs at least two speakers and two emotions",
        )
    single = [EMOTIONS[emotion] for emotion in np.flatnonzero(counts == 1)]
    if single:
        raise InputError(f"one recording only of {', '.join(single)}", hint="add recordings, or leave that one out")


def fit_discriminant(speech: SpeechFeatures, config: VoiceConfig) -> VoiceFit:
    """Fit linear discriminants to recordings and copies, emotions weighted equally, and average them.

    One discriminant is fitted for each of `config.n_components`.
    """
    n_copies = len(speech.tokens)
    flat = speech.tokens.reshape(n_copies * len(speech.emotions), -1)
    emotions = np.tile(speech.emotions, n_copies)
    mean, deviation = flat.mean(0), flat.std(0) + np.float32(1e-3)
    standardised = (flat - mean) / deviation
    components = principal_components(standardised, max(config.n_components))
    scores = (standardised @ components).astype(np.float64)
    heard = np.unique(emotions)
    means = np.stack([scores[emotions == emotion].mean(0) for emotion in heard])
    covariance = np.zeros((scores.shape[1], scores.shape[1]))
    for emotion, centre in zip(heard, means, strict=True):
        around = scores[emotions == emotion] - centre
        covariance += around.T @ around / (len(around) * len(heard))
    directions = np.zeros_like(means.T)
    for count in config.n_components:
        kept = covariance[:count, :count]
        sphere = np.trace(kept) / len(kept) * np.eye(len(kept))
        shrunk = (1.0 - config.shrinkage) * kept + config.shrinkage * sphere
        directions[:count] += np.linalg.solve(shrunk, means[:, :count].T) / len(config.n_components)
    weight, bias = np.zeros((flat.shape[1], len(EMOTIONS))), np.zeros(len(EMOTIONS))
    weight[:, heard] = components @ directions
    # A discriminant's directions are zero in the components that it does not use, so this is the mean of their offsets.
    bias[heard] = -0.5 * (means.T * directions).sum(0)
    return VoiceFit(mean, deviation, weight, bias, np.isin(np.arange(len(EMOTIONS)), heard))


def principal_components(standardised: npt.NDArray[np.float32], n_components: int) -> npt.NDArray[np.float32]:
    """Compute the principal components, float32 (width, components), by randomised subspace iteration.

    standardised: float32 (n, width), mean zero. A full decomposition takes 20 times as long, with the same result.
    Halko, Martinsson and Tropp, SIAM Review 53 (2011), algorithm 5.1 with two iterations.
    """
    n_components = min(n_components, *standardised.shape)
    n_columns = min(n_components + 40, *standardised.shape)
    basis = np.random.default_rng(0).standard_normal((standardised.shape[1], n_columns), np.float32)
    for _ in range(2):
        basis = np.linalg.qr(standardised.T @ (standardised @ basis))[0]
    _, _, rotation = np.linalg.svd(standardised @ basis, full_matrices=False)
    return np.asarray(basis @ rotation[:n_components].T, np.float32)


def fit_temperature(speech: SpeechFeatures, config: VoiceConfig) -> float:
    """Fit the temperature that calibrates the head's logits on left-out speakers, recordings and copies alike.

    Returns: 1 where leaving out any group of speakers would leave out an emotion.
    """
    log_probabilities, emotions = [], []
    for left_out in speaker_folds(speech.speakers, config.n_folds):
        rest = speech.select(~left_out)
        if set(rest.emotions.tolist()) != set(speech.emotions.tolist()):
            continue
        fit = fit_discriminant(rest, config)
        for tokens in speech.tokens[:, left_out]:
            log_probabilities.append(fit.log_probabilities(tokens))
            emotions.append(speech.emotions[left_out])
    if not emotions:
        return 1.0
    return best_temperature(np.concatenate(log_probabilities), np.concatenate(emotions))


def best_temperature(log_probabilities: Float, emotions: npt.NDArray[np.int64]) -> float:
    """Return the one of `TEMPERATURES` with the smallest negative log-likelihood, emotions weighted equally.

    log_probabilities: float64 (n, emotions), -inf where not heard. emotions: int64 (n,).
    """
    weights = 1.0 / np.bincount(emotions)[emotions]

    def loss(temperature: float) -> float:
        scaled = log_probabilities / temperature
        chosen = scaled[np.arange(len(emotions)), emotions]
        return float((weights * (np.log(np.exp(scaled).sum(-1)) - chosen)).sum())

    return float(min(cast("list[float]", TEMPERATURES.tolist()), key=loss))


def speaker_folds(speakers: tuple[str, ...], n_folds: int) -> list[npt.NDArray[np.bool_]]:
    """Return a mask of each group of speakers, bool (recordings,); speakers are distributed in order of their names."""
    names = sorted(set(speakers))
    groups = [names[start::n_folds] for start in range(min(n_folds, len(names)))]
    return [np.isin(speakers, group) for group in groups]
