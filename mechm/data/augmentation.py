"""Audio augmentation: noise, babble, gain, telephone line, clipping, speed and reverberation.

Every function takes and returns float32 (n,) samples, 16 kHz mono, full scale at 1, and does not modify its input. All
randomness comes from the generator that is passed in. The module reads no files and uses no labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16_000
TELEPHONE_BAND_HZ = (300.0, 3400.0)
"""The voice band of ITU-T G.712, of analogue and 8 kHz digital telephony."""
MU = 255.0
"""Companding constant of ITU-T G.711's mu-law; eight bits are 255 steps."""

Samples: TypeAlias = npt.NDArray[np.float32]
Degradation: TypeAlias = Callable[[Samples, Sequence[Samples], np.random.Generator], Samples]
"""(samples, other recordings for babble, generator) -> degraded samples."""


def add_noise(samples: Samples, noise: Samples, snr_db: float) -> Samples:
    """Add noise of the same length at a given ratio of mean powers.

    Where either is silent there is no such ratio, and the samples are returned unchanged.
    """
    signal_power, noise_power = _power(samples), _power(noise)
    if signal_power == 0.0 or noise_power == 0.0:
        return samples.copy()
    scale = np.sqrt(signal_power / noise_power * 10.0 ** (-snr_db / 10.0))
    return np.asarray(samples + scale * noise, np.float32)


def white_noise(n_samples: int, random: np.random.Generator) -> Samples:
    """Draw noise of equal power at all frequencies, standard deviation 1."""
    return random.standard_normal(n_samples, np.float32)


def pink_noise(n_samples: int, random: np.random.Generator) -> Samples:
    """Draw noise whose power falls with frequency as 1/f, roughly as that of rooms and traffic does."""
    spectrum = np.fft.rfft(random.standard_normal(n_samples))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    return np.asarray(np.fft.irfft(spectrum, n_samples), np.float32)


def babble(n_samples: int, others: Sequence[Samples], random: np.random.Generator, n_voices: int = 5) -> Samples:
    """Mix `n_voices` other recordings at equal power, each repeated from a random start."""
    mixed = np.zeros(n_samples, np.float32)
    for index in random.integers(len(others), size=n_voices):
        voice = others[index]
        power = _power(voice)
        if power > 0.0:
            start = random.integers(len(voice))
            mixed += np.resize(np.roll(voice, -start), n_samples) / np.float32(np.sqrt(power))
    return mixed


def apply_gain(samples: Samples, gain_db: float) -> Samples:
    """Scale the samples; the result is not limited to full scale."""
    return np.asarray(samples * 10.0 ** (gain_db / 20.0), np.float32)


def telephone(samples: Samples) -> Samples:
    """Simulate a telephone line: the voice band at 8 kHz, 8-bit mu-law at 3 dB below full scale (exchanges' level)."""
    n, (low, high) = len(samples), TELEPHONE_BAND_HZ
    even = np.pad(samples, (0, n % 2))
    narrow = _band(even, low, high)[::2]  # nothing above 3.4 kHz is left to alias
    peak = float(np.abs(narrow).max(initial=0.0))
    if peak == 0.0:
        return np.zeros_like(samples)
    level = 0.7 / peak
    decoded = _mu_law(narrow * level) / level
    # Back to 16 kHz by an empty upper half of the spectrum; the line passes the quantisation noise of its band only.
    spectrum = np.fft.rfft(decoded)
    wide = 2.0 * np.fft.irfft(np.pad(spectrum, (0, len(even) // 2 + 1 - len(spectrum))), len(even))
    return _band(np.asarray(wide, np.float32), low, high)[:n]


def clip(samples: Samples, share: float) -> Samples:
    """Clip at the level that `share` of the samples exceeds, as an overdriven microphone does."""
    if not len(samples):
        return samples.copy()
    level = float(np.quantile(np.abs(samples), 1.0 - share))
    return np.asarray(np.clip(samples, -level, level), np.float32)


def change_speed(samples: Samples, factor: float) -> Samples:
    """Play `factor` times as fast, which changes tempo and pitch together. Resamples in the frequency domain."""
    n = len(samples)
    wanted = max(1, round(n / factor))
    spectrum = np.fft.rfft(samples)
    kept = spectrum[: wanted // 2 + 1]
    padded = np.pad(kept, (0, wanted // 2 + 1 - len(kept)))
    return np.asarray(np.fft.irfft(padded, wanted) * (wanted / n), np.float32)


def reverberate(
    samples: Samples, rt60_s: float, direct_to_reverberant_db: float, random: np.random.Generator
) -> Samples:
    """Simulate a room: the sound followed by exponentially decaying noise (Polack's model of late reverberation).

    rt60_s: time in which the reverberation falls by 60 dB. The length is kept; reverberation after the end is cut off.
    """
    n = len(samples)
    if n < 2:
        return samples.copy()
    n_tail = min(max(2, int(rt60_s * SAMPLE_RATE)), n)
    tail = random.standard_normal(n_tail) * 10.0 ** (-3.0 * np.arange(n_tail) / (rt60_s * SAMPLE_RATE))
    tail[0] = 0.0  # the direct sound, which is added unfiltered
    tail *= np.sqrt(10.0 ** (-direct_to_reverberant_db / 10.0) / np.sum(tail**2))
    size = n + n_tail
    ringing = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(tail, size), size)[:n]
    return np.asarray(samples + ringing, np.float32)


DEGRADATIONS: Mapping[str, Degradation] = {
    "white noise 20 dB": lambda x, _, random: add_noise(x, white_noise(len(x), random), 20.0),
    "white noise 10 dB": lambda x, _, random: add_noise(x, white_noise(len(x), random), 10.0),
    "pink noise 10 dB": lambda x, _, random: add_noise(x, pink_noise(len(x), random), 10.0),
    "babble 10 dB": lambda x, others, random: add_noise(x, babble(len(x), others, random), 10.0),
    "babble 5 dB": lambda x, others, random: add_noise(x, babble(len(x), others, random), 5.0),
    "gain -20 dB": lambda x, _, __: apply_gain(x, -20.0),
    "gain +12 dB": lambda x, _, __: apply_gain(x, 12.0),
    "telephone": lambda x, _, __: telephone(x),
    "clipping 10 %": lambda x, _, __: clip(x, 0.1),
    "room 0.5 s": lambda x, _, random: reverberate(x, 0.5, 3.0, random),
}
"""Degradations of a fixed strength by name, for benchmarks."""


@dataclass(frozen=True, slots=True)
class AugmentationConfig:
    """Augmentation for training: a probability for each step, and ranges that are sampled uniformly.

    speed: also changes pitch and vocal tract, to those of a larger or a smaller speaker.
    """

    speed_rate: float = 0.8
    speed: tuple[float, float] = (0.84, 1.19)
    room_rate: float = 0.3
    rt60_s: tuple[float, float] = (0.15, 0.8)
    direct_to_reverberant_db: tuple[float, float] = (-2.0, 10.0)
    noise_rate: float = 0.6
    snr_db: tuple[float, float] = (3.0, 30.0)
    telephone_rate: float = 0.25
    clipping_rate: float = 0.25
    clipped: tuple[float, float] = (0.0, 0.2)
    gain_db: tuple[float, float] = (-25.0, 12.0)


def augment(
    samples: Samples, others: Sequence[Samples], config: AugmentationConfig, random: np.random.Generator
) -> Samples:
    """Degrade a recording at random: speed, room, noise, telephone line, clipping and level, in that order.

    others: recordings to make babble from, at least one.
    """
    if random.random() < config.speed_rate:
        samples = change_speed(samples, random.uniform(*config.speed))
    if random.random() < config.room_rate:
        ratio_db = random.uniform(*config.direct_to_reverberant_db)
        samples = reverberate(samples, random.uniform(*config.rt60_s), ratio_db, random)
    if random.random() < config.noise_rate:
        kind = random.integers(3)
        n = len(samples)
        noise = babble(n, others, random) if kind == 2 else (white_noise, pink_noise)[kind](n, random)
        samples = add_noise(samples, noise, random.uniform(*config.snr_db))
    if random.random() < config.telephone_rate:
        samples = telephone(samples)
    if random.random() < config.clipping_rate:
        samples = clip(samples, random.uniform(*config.clipped))
    return apply_gain(samples, random.uniform(*config.gain_db))


def _power(samples: Samples) -> float:
    return float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0


def _band(samples: Samples, low_hz: float, high_hz: float) -> Samples:
    if not len(samples):
        return samples.copy()
    spectrum = np.fft.rfft(samples)
    frequencies = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    spectrum[(frequencies < low_hz) | (frequencies > high_hz)] = 0.0
    return np.asarray(np.fft.irfft(spectrum, len(samples)), np.float32)


def _mu_law(samples: Samples) -> Samples:
    """Compand, round to 255 steps and expand. samples: in [-1, 1]."""
    companded = np.sign(samples) * np.log1p(MU * np.abs(samples)) / np.log1p(MU)
    rounded = np.round(companded * 127.0) / 127.0
    return np.asarray(np.sign(rounded) * np.expm1(np.abs(rounded) * np.log1p(MU)) / MU, np.float32)
