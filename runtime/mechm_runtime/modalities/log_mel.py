"""The log-mel spectrogram of openai/whisper, in numpy, on a recording's own length.

Agrees with transformers' WhisperFeatureExtractor, except that nothing is padded to 30 s. It does not resample: the
segments of `mechm_runtime.media` have the right rate.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mechm_runtime.bundle.config import LogMelConfig
from mechm_runtime.errors import InputError
from mechm_runtime.system.arrays import Float32Array, Float64Array

FLOOR = 1e-10
"""Lower bound of the power before the logarithm, as in openai/whisper's log_mel_spectrogram."""


DEFAULT = LogMelConfig()


def log_mel_spectrogram(samples: Float32Array, config: LogMelConfig = DEFAULT) -> Float32Array:
    """Compute the spectrogram of one recording or utterance.

    samples: float32 (n_samples,), mono, in [-1, 1], at `config.sample_rate`; more than half a window.
    Returns: float32 (n_mels, n_frames), n_frames = n_samples // hop_length, frame t centred on sample t * hop_length.
    Raises: InputError: another shape, or too short to be mirrored at its ends or to hold a frame.
    """
    if samples.ndim != 1:
        raise InputError(f"samples of shape {samples.shape}, where (n_samples,) is expected")
    half = config.n_fft // 2
    n_frames = len(samples) // config.hop_length
    if len(samples) <= half or n_frames == 0:
        raise InputError(
            f"{len(samples)} samples are too few for a spectrogram",
            hint=f"it takes more than {max(half, config.hop_length)}",
        )
    mirrored = np.pad(np.asarray(samples, dtype=np.float32), half, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(mirrored, config.n_fft)[:: config.hop_length][:n_frames]
    # In float64: 80 dB below the loudest bin, a float32 transform is wrong in the fourth digit.
    spectrum = np.fft.rfft(windows * _hann(config.n_fft), axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    bins, shares, starts = _filter_bins(config)
    # Not as a matrix product: the threads of numpy's BLAS spin on the cores that the encoders compute on.
    mel = np.log10(np.maximum(np.add.reduceat(power[:, bins] * shares, starts, axis=1), FLOOR))
    mel = (np.maximum(mel, mel.max() - config.dynamic_range) + config.offset) / config.scale
    return np.ascontiguousarray(mel.T, dtype=np.float32)


@lru_cache(maxsize=8)
def _hann(length: int) -> Float64Array:
    """Periodic Hann window, float64 (length,): one period of the cosine, its last value left out."""
    window = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(length) / length)
    window.flags.writeable = False
    return window


@lru_cache(maxsize=8)
def _filter_bins(config: LogMelConfig) -> tuple[NDArray[np.intp], Float64Array, NDArray[np.intp]]:
    """The filters without their zeros, one after the other.

    Returns: bins and their shares, of all filters (n,), and where each filter begins (n_mels,).
    """
    filters = _mel_filters(config)
    # One with no bin (there are too many filters for the spectrum) has the first, at a share of zero.
    of_each = [bins if len(bins := np.flatnonzero(column)) else np.zeros(1, np.intp) for column in filters.T]
    starts = np.concatenate(([0], np.cumsum([len(bins) for bins in of_each])[:-1])).astype(np.intp)
    shares = np.concatenate([column[bins] for column, bins in zip(filters.T, of_each, strict=True)])
    return np.concatenate(of_each), shares, starts


@lru_cache(maxsize=8)
def _mel_filters(config: LogMelConfig) -> Float64Array:
    """Triangular filters, float64 (n_fft // 2 + 1, n_mels), of equal area over 0 Hz to half the sample rate.

    Edges are even on the mel scale of Slaney's Auditory Toolbox (1998), the default of librosa.filters.mel: linear up
    to 1 kHz (3 mel per 200 Hz), logarithmic above (27 mel per factor 6.4).
    """
    highest_hz = config.sample_rate / 2
    edges_hz = _mel_to_hz(np.linspace(0.0, _hz_to_mel(highest_hz), config.n_mels + 2))
    bins_hz = np.linspace(0.0, highest_hz, config.n_fft // 2 + 1)
    widths_hz = np.diff(edges_hz)
    distances_hz = edges_hz[None, :] - bins_hz[:, None]
    rising = -distances_hz[:, :-2] / widths_hz[:-1]
    falling = distances_hz[:, 2:] / widths_hz[1:]
    filters = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges_hz[2:] - edges_hz[:-2]))
    filters.flags.writeable = False
    return filters


KNEE_HZ, KNEE_MEL = 1000.0, 15.0
MEL_PER_HZ = KNEE_MEL / KNEE_HZ
MEL_PER_LOG = 27.0 / np.log(6.4)


def _hz_to_mel(frequency_hz: float) -> float:
    if frequency_hz < KNEE_HZ:
        return frequency_hz * MEL_PER_HZ
    return float(KNEE_MEL + np.log(frequency_hz / KNEE_HZ) * MEL_PER_LOG)


def _mel_to_hz(mel: Float64Array) -> Float64Array:
    return np.where(
        mel < KNEE_MEL, mel / MEL_PER_HZ, KNEE_HZ * np.exp((np.maximum(mel, KNEE_MEL) - KNEE_MEL) / MEL_PER_LOG)
    )
