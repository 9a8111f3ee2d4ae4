"""Degradations do what their names say: ratios are reached, bands kept, levels cut; a seed decides what is random."""

from __future__ import annotations

import numpy as np
import pytest

from mechm.data.augmentation import (
    DEGRADATIONS,
    SAMPLE_RATE,
    AugmentationConfig,
    Samples,
    add_noise,
    apply_gain,
    augment,
    babble,
    change_speed,
    clip,
    pink_noise,
    reverberate,
    telephone,
    white_noise,
)


def tone(pitch_hz: float, seconds: float = 1.0, level: float = 0.3) -> Samples:
    times = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (level * np.sin(2 * np.pi * pitch_hz * times)).astype(np.float32)


def noise(seconds: float = 1.0, seed: int = 0) -> Samples:
    return 0.1 * white_noise(int(seconds * SAMPLE_RATE), np.random.default_rng(seed))


def power(samples: Samples) -> float:
    return float(np.mean(np.square(samples, dtype=np.float64)))


def power_between(samples: Samples, low_hz: float, high_hz: float) -> float:
    spectrum = np.abs(np.fft.rfft(samples.astype(np.float64))) ** 2
    frequencies = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    return float(spectrum[(frequencies >= low_hz) & (frequencies < high_hz)].sum())


OTHERS = [tone(180, 0.4), noise(0.7, 5), tone(260, 1.5)]


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 12.0, 30.0])
def test_noise_is_added_at_the_ratio_asked_for(snr_db: float) -> None:
    voice = tone(220)
    noisy = add_noise(voice, noise(), snr_db)
    reached = 10 * np.log10(power(voice) / power(noisy - voice))
    assert reached == pytest.approx(snr_db, abs=0.05)


def test_white_noise_is_flat_and_pink_noise_falls_by_three_decibels_an_octave() -> None:
    random = np.random.default_rng(0)
    n = 30 * SAMPLE_RATE
    octaves = [(250, 500), (500, 1000), (1000, 2000), (2000, 4000)]
    white = [power_between(white_noise(n, random), *octave) for octave in octaves]
    pink = [power_between(pink_noise(n, random), *octave) for octave in octaves]
    assert np.diff(10 * np.log10(white)) == pytest.approx(3.0, abs=0.4)
    assert np.diff(10 * np.log10(pink)) == pytest.approx(0.0, abs=0.4)


def test_babble_has_the_length_asked_for_and_is_made_of_the_others() -> None:
    mixed = babble(5000, [tone(500, 2.0)], np.random.default_rng(0))
    assert mixed.shape == (5000,)
    assert power_between(mixed, 450, 550) > 0.95 * power_between(mixed, 0, 8000)


def test_gain_is_in_decibels_of_amplitude() -> None:
    assert apply_gain(tone(300), -20.0) == pytest.approx(0.1 * tone(300), abs=1e-6)
    assert power(apply_gain(tone(300), 6.0)) == pytest.approx(10**0.6 * power(tone(300)), rel=1e-4)


def test_a_telephone_passes_its_band_and_nothing_else() -> None:
    heard = telephone(noise(2.0))
    everything = power_between(heard, 0, 8001)
    assert power_between(heard, 300, 3400) > 0.999 * everything
    inside = tone(1000)
    distortion = telephone(inside) - inside
    assert 10 * np.log10(power(inside) / power(distortion)) > 30  # eight bits of mu-law have about 38 dB
    assert power(distortion) > 0
    assert power(telephone(tone(100))) < 1e-3 * power(tone(100))


@pytest.mark.parametrize("length", [16_000, 15_999, 12_345])
def test_a_telephone_keeps_length_and_timing(length: int) -> None:
    voice = tone(1000, 2.0)[:length]
    heard = telephone(voice)
    assert heard.shape == voice.shape
    assert float(np.corrcoef(heard[100:-100], voice[100:-100])[0, 1]) > 0.99


def test_clipping_cuts_the_share_asked_for_and_leaves_the_rest() -> None:
    voice = noise()
    cut = clip(voice, 0.1)
    level = np.abs(cut).max()
    assert (np.abs(voice) >= level).mean() == pytest.approx(0.1, abs=0.002)
    below = np.abs(voice) < level
    assert np.array_equal(cut[below], voice[below])
    assert np.array_equal(clip(voice, 0.0), voice)


@pytest.mark.parametrize("factor", [0.84, 1.0, 1.19])
def test_speed_changes_length_and_pitch_together(factor: float) -> None:
    faster = change_speed(tone(400), factor)
    assert len(faster) == round(SAMPLE_RATE / factor)
    loudest = np.abs(np.fft.rfft(faster)).argmax() * SAMPLE_RATE / len(faster)
    assert loudest == pytest.approx(400 * factor, abs=2)
    assert power(faster) == pytest.approx(power(tone(400)), rel=0.02)


def test_a_room_rings_on_after_the_sound() -> None:
    click = np.zeros(SAMPLE_RATE, np.float32)
    click[1000] = 1.0
    heard = reverberate(click, 0.5, 3.0, np.random.default_rng(0))
    assert np.abs(heard[:1000]).max() < 1e-9
    tail = heard.copy()
    tail[1000] = 0.0
    assert 10 * np.log10(1.0 / float(np.sum(tail**2))) == pytest.approx(3.0, abs=0.3)
    early, late = power(heard[1010:2600]), power(heard[5010:6600])
    assert 10 * np.log10(early / late) == pytest.approx(60 * 4000 / (0.5 * SAMPLE_RATE), abs=3)


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_a_seed_decides_and_silence_stays_finite(name: str) -> None:
    degrade, voice = DEGRADATIONS[name], tone(200) + noise()
    first, again = (degrade(voice, OTHERS, np.random.default_rng(3)) for _ in range(2))
    assert first.dtype == np.float32
    assert first.shape == voice.shape
    assert np.array_equal(first, again)
    assert np.isfinite(degrade(np.zeros(1000, np.float32), OTHERS, np.random.default_rng(3))).all()


def test_augmented_copies_differ_by_seed_and_leave_the_recording_alone() -> None:
    voice = tone(200) + noise()
    before = voice.copy()
    config = AugmentationConfig()
    copies = [augment(voice, OTHERS, config, np.random.default_rng(seed)) for seed in (0, 0, *range(1, 40))]
    assert np.array_equal(voice, before)
    assert np.array_equal(copies[0], copies[1])
    assert all(copy.dtype == np.float32 and np.isfinite(copy).all() for copy in copies)
    assert len({copy.tobytes() for copy in copies}) == 40
    assert all(0.8 < len(copy) / len(voice) < 1.25 for copy in copies)


@pytest.mark.parametrize("n_samples", [1, 2, 401])
def test_the_shortest_and_silent_recordings_are_augmented_too(n_samples: int) -> None:
    always = AugmentationConfig(1.0, (0.9, 1.1), 1.0, (0.2, 0.8), (0.0, 9.0), 1.0, (3.0, 9.0), 1.0, 1.0)
    for seed in range(6):
        for samples in (np.zeros(n_samples, np.float32), np.full(n_samples, 0.5, np.float32)):
            copy = augment(samples, [np.zeros(5, np.float32)], always, np.random.default_rng(seed))
            assert np.isfinite(copy).all()
