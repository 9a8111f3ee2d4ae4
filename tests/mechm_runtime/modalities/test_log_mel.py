"""The spectrogram is Whisper's, on a recording's own length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mechm_runtime.bundle.config import LogMelConfig
from mechm_runtime.errors import InputError
from mechm_runtime.modalities.log_mel import log_mel_spectrogram


def sweep(seconds: float = 1.0) -> NDArray[np.float32]:
    """A tone rising from 200 to 3,200 Hz in the first second."""
    time_s = np.arange(round(16_000 * seconds)) / 16_000
    return (0.5 * np.sin(2 * np.pi * (200 * time_s + 1500 * time_s**2))).astype(np.float32)


def noise(seconds: float, loudness: float = 0.1) -> NDArray[np.float32]:
    return (np.random.default_rng(3).standard_normal(round(16_000 * seconds)) * loudness).astype(np.float32)


PINNED = [
    [1.16587, 0.57741, 0.18218, 0.01075],
    [1.19491, 0.60571, 0.29774, 0.12216],
    [1.25925, 0.72516, 0.48053, 0.28276],
]
"""The first values of `sweep()`, equal to transformers 5.19's within 1e-5."""

MAXIMUM = 1.44695

RECORDINGS = {
    "sweep": sweep(),
    "noise": noise(3.0),
    "quiet": noise(0.5, 1e-4),
    "silence": np.zeros(8_000, np.float32),
    "one window": noise(0.025),
    "odd length": noise(0.7713),
    "half silent": np.concatenate([np.zeros(16_000, np.float32), noise(1.0, 0.9)]),
}


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.parametrize("n_mels", [80, 128])
def test_equals_the_extractor_of_transformers(name: str, n_mels: int) -> None:
    transformers = pytest.importorskip("transformers")
    extractor = transformers.WhisperFeatureExtractor(feature_size=n_mels)
    samples = RECORDINGS[name]
    expected = extractor(samples, sampling_rate=16_000, padding=False, truncation=False, return_tensors="np")

    mel = log_mel_spectrogram(samples, LogMelConfig(n_mels=n_mels))

    assert mel.dtype == np.float32
    assert mel.shape == expected["input_features"][0].shape
    assert np.abs(mel - expected["input_features"][0]).max() < 1e-4


def test_equals_the_extractor_of_transformers_on_a_phone_call(mechm_data: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from mechm_runtime.media import read_segments

    samples = read_segments(mechm_data / "media" / "phone_call.wav", [(0.0, 30.0)]).segments[0].samples
    assert samples is not None
    extractor = transformers.WhisperFeatureExtractor()
    expected = extractor(samples, sampling_rate=16_000, padding=False, truncation=False, return_tensors="np")
    assert np.abs(log_mel_spectrogram(samples) - expected["input_features"][0]).max() < 1e-4


def test_first_values_without_transformers() -> None:
    mel = log_mel_spectrogram(sweep())
    assert mel.shape == (80, 100)
    np.testing.assert_allclose(mel[:3, :4], PINNED, atol=1e-4)
    assert float(mel.max()) == pytest.approx(MAXIMUM, abs=1e-4)


def test_a_tone_lights_the_filter_of_its_frequency() -> None:
    for frequency_hz in (200.0, 1000.0, 3000.0):
        tone = np.sin(2 * np.pi * frequency_hz * np.arange(16_000) / 16_000).astype(np.float32)
        loudest = int(log_mel_spectrogram(tone)[:, 50].argmax())
        mel = 15 + 27 * np.log(frequency_hz / 1000) / np.log(6.4) if frequency_hz >= 1000 else frequency_hz * 0.015
        highest_mel = 15 + 27 * np.log(8) / np.log(6.4)
        assert loudest == pytest.approx(mel / highest_mel * 81 - 1, abs=1)


def test_a_frame_covers_ten_milliseconds_and_the_first_is_centred_on_the_start() -> None:
    click = np.zeros(16_000, np.float32)
    click[8_000] = 1.0
    mel = log_mel_spectrogram(click)
    assert int(mel.sum(axis=0).argmax()) == 50
    assert LogMelConfig().frames_per_second == 100.0


@pytest.mark.parametrize("samples", [np.zeros(0), np.zeros(200), np.zeros((2, 16_000))])
def test_too_short_or_of_another_shape(samples: NDArray[np.float32]) -> None:
    with pytest.raises(InputError):
        log_mel_spectrogram(samples.astype(np.float32))


@pytest.mark.parametrize("constants", [{"n_mels": 0}, {"hop_length": -1}, {"hop_length": 500}, {"scale": 0.0}])
def test_constants_are_checked(constants: dict[str, int]) -> None:
    with pytest.raises(InputError):
        LogMelConfig(**constants)
