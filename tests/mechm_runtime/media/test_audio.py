"""Sound keeps its place in time, whatever the container, codec and sample rate."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from mechm_runtime.errors import MediaError
from mechm_runtime.media import SAMPLE_RATE, MediaLimits, MediaReader

CLICKS_S = (0.5, 1.0, 2.25, 3.5)


@pytest.fixture(scope="module")
def reader() -> Iterator[MediaReader]:
    with MediaReader(MediaLimits(timeout_s=60)) as reader:
        yield reader


def clicks(rate: int, seconds: float = 4.0, at_s: tuple[float, ...] = CLICKS_S) -> NDArray[np.float32]:
    """Silence with single loud samples."""
    samples = np.zeros(round(rate * seconds), np.float32)
    for moment_s in at_s:
        samples[round(moment_s * rate)] = 0.9
    return samples


def encode(
    path: Path,
    samples: NDArray[np.float32],
    rate: int,
    codec: str,
    *,
    container: str | None = None,
    layout: str = "mono",
    first_s: float = 0.0,
    gap_after_s: float | None = None,
    gap_s: float = 0.0,
) -> Path:
    """Write samples (n,) or (n_channels, n); from `gap_after_s` on, time stamps are `gap_s` later."""
    planes = np.atleast_2d(samples)
    with av.open(str(path), "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=rate)
        stream.layout = layout
        for start in range(0, planes.shape[1], 1024):
            block = np.ascontiguousarray(planes[:, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            late_s = first_s + (gap_s if gap_after_s is not None and start / rate >= gap_after_s else 0.0)
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), start + round(late_s * rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def write_wav(path: Path, samples: NDArray[np.float32], rate: int = SAMPLE_RATE) -> Path:
    with wave.open(str(path), "wb") as output:
        output.setnchannels(1)
        output.setsampwidth(2)
        output.setframerate(rate)
        output.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def loudest_s(samples: NDArray[np.float32], near_s: float, within_s: float = 0.1) -> float:
    first = round((near_s - within_s) * SAMPLE_RATE)
    window = samples[first : round((near_s + within_s) * SAMPLE_RATE)]
    return (first + int(np.abs(window).argmax())) / SAMPLE_RATE


FRAME_S = 1152 / 44_100  # the longest frame of aac and mp3: what a container that cannot state its priming may be off


@pytest.mark.parametrize(
    ("name", "codec", "rate", "container", "tolerance_s"),
    [
        ("a.wav", "pcm_s16le", 8_000, None, 0.001),
        ("a.wav", "pcm_s16le", 22_050, None, 0.001),
        ("a.wav", "pcm_s24le", 44_100, None, 0.001),
        ("a.wav", "pcm_f32le", 48_000, None, 0.001),
        ("a.wav", "pcm_mulaw", 8_000, None, 0.001),
        ("a.flac", "flac", 44_100, None, 0.001),
        ("a.mp3", "libmp3lame", 44_100, None, 0.001),
        ("a.mp4", "aac", 44_100, None, 0.001),
        ("a.m4a", "aac", 22_050, None, 0.001),
        ("a.mkv", "aac", 48_000, None, 0.001),
        ("a.ogg", "libopus", 48_000, None, 0.001),
        ("a.webm", "libopus", 48_000, None, 0.001),
        ("a.ts", "aac", 44_100, None, FRAME_S),
        ("a.flv", "aac", 44_100, None, FRAME_S),
        ("a.avi", "libmp3lame", 44_100, None, FRAME_S),
        ("a.aac", "aac", 44_100, "adts", FRAME_S),
    ],
)
def test_clicks_stay_where_they_are(
    tmp_path: Path, reader: MediaReader, name: str, codec: str, rate: int, container: str | None, tolerance_s: float
) -> None:
    path = encode(tmp_path / name, clicks(rate), rate, codec, container=container)

    recording = reader.read_segments(path, [(0.0, 4.0)])

    samples = recording.segments[0].samples
    assert samples is not None
    assert samples.dtype == np.float32
    assert len(samples) == 4 * SAMPLE_RATE
    errors_s = [abs(loudest_s(samples, click_s) - click_s) for click_s in CLICKS_S]
    assert max(errors_s) <= tolerance_s + 1 / SAMPLE_RATE
    assert recording.info.duration_s == pytest.approx(4.0, abs=0.06)
    assert recording.info.sample_rate == rate


def test_nothing_drifts_over_two_minutes(tmp_path: Path, reader: MediaReader) -> None:
    moments_s = tuple(float(second) + 0.5 for second in range(0, 120, 7))
    path = write_wav(tmp_path / "long.wav", clicks(22_050, 120.0, moments_s), 22_050)
    samples = reader.read_segments(path, [(0.0, 120.0)]).segments[0].samples
    assert samples is not None
    assert max(abs(loudest_s(samples, moment_s) - moment_s) for moment_s in moments_s) <= 0.001


def test_a_span_alone_equals_the_same_span_among_others(tmp_path: Path, reader: MediaReader) -> None:
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, 6 * 44_100).astype(np.float32)
    path = encode(tmp_path / "noise.mp4", noise, 44_100, "aac")
    spans = [(4.0, 5.5), (0.25, 1.0), (0.5, 3.0), (0.0, 6.0), (2.0, 2.5)]

    together = reader.read_segments(path, spans)

    for span, segment in zip(spans, together.segments, strict=True):
        alone = reader.read_segments(path, [span]).segments[0]
        assert (segment.start_s, segment.end_s) == span
        assert segment.samples is not None
        assert len(segment.samples) == round((span[1] - span[0]) * SAMPLE_RATE)
        np.testing.assert_array_equal(segment.samples, alone.samples)


@pytest.mark.parametrize(("name", "codec"), [("far.wav", "pcm_s16le"), ("far.flac", "flac"), ("far.mp4", "aac")])
def test_a_span_far_ahead_is_the_same_after_a_seek(tmp_path: Path, reader: MediaReader, name: str, codec: str) -> None:
    tones = np.sin(np.cumsum(np.linspace(0.05, 0.5, 90 * SAMPLE_RATE))).astype(np.float32) * 0.5
    path = encode(tmp_path / name, tones, SAMPLE_RATE, codec)

    seeked = reader.read_segments(path, [(80.0, 81.0)]).segments[0].samples
    decoded_through = reader.read_segments(path, [(0.0, 90.0)]).segments[0].samples

    assert seeked is not None
    assert decoded_through is not None
    np.testing.assert_allclose(seeked, decoded_through[80 * SAMPLE_RATE : 81 * SAMPLE_RATE], atol=1e-4)


def test_a_gap_in_the_time_stamps_stays_a_gap(tmp_path: Path, reader: MediaReader) -> None:
    path = encode(tmp_path / "gap.mkv", clicks(16_000), 16_000, "pcm_s16le", gap_after_s=1.5, gap_s=3.0)

    whole, inside = reader.read_segments(path, [(0.0, 7.0), (2.5, 3.5)]).segments

    assert whole.samples is not None
    assert abs(loudest_s(whole.samples, 1.0) - 1.0) <= 0.001
    assert abs(loudest_s(whole.samples, 5.25) - 5.25) <= 0.001
    assert inside.samples is None
    assert inside.missing["audio"] == "no audio in this span"


def test_two_channels_are_averaged_and_loudness_is_kept(tmp_path: Path, reader: MediaReader) -> None:
    time_s = np.arange(2 * 44_100) / 44_100
    left = (0.8 * np.sin(2 * np.pi * 440 * time_s)).astype(np.float32)
    stereo = np.stack([left, np.zeros_like(left)])
    path = encode(tmp_path / "stereo.flac", stereo, 44_100, "flac", layout="stereo")
    samples = reader.read_segments(path, [(0.5, 1.5)]).segments[0].samples
    assert samples is not None
    assert np.abs(samples).max() == pytest.approx(0.4, abs=0.01)


def test_what_16_khz_cannot_hold_is_filtered_out(tmp_path: Path, reader: MediaReader) -> None:
    time_s = np.arange(2 * 44_100) / 44_100
    path = write_wav(tmp_path / "high.wav", np.sin(2 * np.pi * 10_000 * time_s).astype(np.float32) * 0.9, 44_100)
    samples = reader.read_segments(path, [(0.5, 1.5)]).segments[0].samples
    assert samples is not None
    assert np.abs(samples).max() < 0.01


def test_loud_samples_are_clipped_and_broken_numbers_are_no_sound(tmp_path: Path, reader: MediaReader) -> None:
    loud = encode(tmp_path / "loud.wav", np.full(16_000, 3.0, np.float32), 16_000, "pcm_f32le")
    samples = reader.read_segments(loud, [(0.0, 1.0)]).segments[0].samples
    assert samples is not None
    assert samples.max() == 1.0

    broken = bytearray(loud.read_bytes())
    broken[-4000:] = b"\xff" * 4000  # a float of all ones is not a number
    (tmp_path / "nan.wav").write_bytes(broken)
    segment = reader.read_segments(tmp_path / "nan.wav", [(0.0, 1.0)]).segments[0]
    assert segment.samples is None
    assert "not numbers" in segment.missing["audio"]


def test_spans_at_and_past_the_end_say_so(tmp_path: Path, reader: MediaReader) -> None:
    path = write_wav(tmp_path / "short.wav", clicks(SAMPLE_RATE, 2.0, (0.5,)))
    spans = [(1.5, 3.0), (2.5, 3.0), (1.0, 1.01), (1.99, 5.0), (0.7, 0.7)]
    partial, past, short, tail, nothing = reader.read_segments(path, spans).segments
    assert partial.samples is not None
    assert len(partial.samples) == SAMPLE_RATE // 2
    assert past.missing == {"audio": "no audio in this span", "video": "no video track"}
    for segment in (short, tail, nothing):
        assert segment.samples is None
        assert segment.missing["audio"] == "shorter than 25 ms"


def test_a_recording_that_never_said_its_length_is_measured(tmp_path: Path, reader: MediaReader) -> None:
    streamed = bytearray(write_wav(tmp_path / "a.wav", clicks(SAMPLE_RATE)).read_bytes())
    streamed[4:8] = streamed[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "streamed.wav").write_bytes(streamed)
    assert reader.probe(tmp_path / "streamed.wav").duration_s == pytest.approx(4.0)

    varying = np.concatenate([np.zeros(8 * 44_100), np.random.default_rng(0).uniform(-0.9, 0.9, 2 * 44_100)])
    path = encode(tmp_path / "a.aac", varying.astype(np.float32), 44_100, "aac", container="adts")
    assert reader.probe(path).duration_s == pytest.approx(10.0, abs=0.06)  # a guess from the bit rate is far off


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (MediaLimits(max_sample_rate=16_000), "44,100 audio samples per second"),
        (MediaLimits(max_channels=1), "2 audio channels"),
        (MediaLimits(max_duration_s=3.0), "lasts 4 s"),
        (MediaLimits(max_bytes=1000), "above the limit of 1,000"),
    ],
)
def test_limits_on_sound(tmp_path: Path, limits: MediaLimits, message: str) -> None:
    path = encode(tmp_path / "a.flac", np.stack([clicks(44_100)] * 2), 44_100, "flac", layout="stereo")
    with MediaReader(limits) as reader, pytest.raises(MediaError, match=message) as caught:
        reader.probe(path)
    assert str(caught.value).startswith("a.flac: ")
    assert "MediaLimits" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "codec"), [("late.mka", "flac"), ("late.webm", "libopus"), ("late.m4a", "aac"), ("late.ts", "aac")]
)
def test_a_recording_counts_from_its_own_start(tmp_path: Path, reader: MediaReader, name: str, codec: str) -> None:
    path = encode(tmp_path / name, clicks(48_000, 3.0, (0.5, 1.0)), 48_000, codec, first_s=40.0)
    duration_s = reader.probe(path).duration_s
    assert duration_s is not None
    assert abs(duration_s - 3.0) < 0.1


def test_surround_sound_keeps_the_level_of_its_centre(tmp_path: Path, reader: MediaReader) -> None:
    t = np.arange(2 * 48_000) / 48_000
    planes = np.zeros((6, len(t)), np.float32)  # FL, FR, FC, LFE, BL, BR
    planes[2] = 0.5 * np.sin(2 * np.pi * 440 * t)
    path = encode(tmp_path / "film.mkv", planes, 48_000, "aac", layout="5.1")
    samples = reader.read_segments(path, [(0.5, 1.5)]).segments[0].samples
    assert samples is not None
    assert abs(float(np.abs(samples).max()) - 0.5) < 0.05
