"""Frames come upright, in their colours, and from the right moment, however the video is stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mechm_runtime.errors import MediaError
from mechm_runtime.media import MediaLimits, MediaReader, Segment

Frame = NDArray[np.uint8]


@pytest.fixture(scope="module")
def reader() -> Iterator[MediaReader]:
    with MediaReader(MediaLimits(timeout_s=60)) as reader:
        yield reader


def corners() -> Frame:
    """96 x 64 pixels: red, green, blue and white quarters, so that each of the eight orientations looks different."""
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[:32, :48] = (220, 30, 30)
    frame[:32, 48:] = (30, 200, 30)
    frame[32:, :48] = (30, 30, 220)
    frame[32:, 48:] = (240, 240, 240)
    return frame


def grey(level: int, height: int = 64, width: int = 96) -> Frame:
    return np.full((height, width, 3), level, np.uint8)


def encode(
    path: Path,
    frames: Sequence[Frame],
    *,
    at_s: Sequence[float] | None = None,
    rate: int = 25,
    codec: str = "libx264",
    turned: tuple[int, bool, bool] | None = None,
    aspect: Fraction | None = None,
    sound_s: float = 0.0,
    options: dict[str, str] | None = None,
) -> Path:
    """Write frames at their times (default: `rate`); `turned` is the display matrix (degrees left, mirror x, y)."""
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as output:
        stream: Any = output.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if turned is not None:
            stream.set_display_rotation(turned[0], hflip=turned[1], vflip=turned[2])
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        time_base = Fraction(1, rate) if at_s is None else Fraction(1, 1000)
        stream.codec_context.time_base = time_base
        voice: Any = output.add_stream("aac", rate=16_000) if sound_s else None
        if voice is not None:
            voice.layout = "mono"
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.time_base = time_base
            frame.pts = index if at_s is None else round(1000 * at_s[index])
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if voice is not None:
            sound = av.AudioFrame.from_ndarray(
                np.zeros((1, round(sound_s * 16_000)), np.float32), format="fltp", layout="mono"
            )
            sound.sample_rate, sound.pts = 16_000, 0
            output.mux(voice.encode(sound))
            output.mux(voice.encode(None))
    return path


def levels(segment: Segment) -> list[int]:
    """The brightness of each frame."""
    assert segment.frames is not None
    return [round(float(frame.mean())) for frame in segment.frames]


def assert_looks_like(shown: Frame, expected: Frame) -> None:
    """Same size, and every quarter's middle within a codec's rounding of its colour."""
    assert shown.shape == expected.shape
    height, width = shown.shape[:2]
    for y in (height // 4, 3 * height // 4):
        for x in (width // 4, 3 * width // 4):
            assert np.abs(shown[y, x].astype(int) - expected[y, x]).max() <= 12


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_every_orientation_comes_upright(
    tmp_path: Path, reader: MediaReader, degrees: int, mirrored: bool, suffix: str
) -> None:
    path = encode(tmp_path / f"turned{suffix}", [corners()] * 5, turned=(degrees, mirrored, False))

    recording = reader.read_segments(path, [(0.0, 0.2)])

    expected = np.rot90(corners(), degrees // 90)  # turns to the left, like the display matrix
    if mirrored:
        expected = expected[:, ::-1]
    frames = recording.segments[0].frames
    assert frames is not None
    assert frames.dtype == np.uint8
    assert_looks_like(frames[0], expected)
    assert (recording.info.height, recording.info.width) == expected.shape[:2]

    # What the facts say turns the stored picture into the shown one.
    stated = np.rot90(corners(), -recording.info.rotation_degrees // 90)
    np.testing.assert_array_equal(stated[:, ::-1] if recording.info.mirrored else stated, expected)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_a_video_of_one_upright_frame(
    tmp_path: Path, reader: MediaReader, orientation: int, kind: str
) -> None:
    expected = corners()
    stored = {
        1: expected,
        2: expected[:, ::-1],
        3: expected[::-1, ::-1],
        4: expected[::-1],
        5: expected.swapaxes(0, 1),
        6: np.rot90(expected, 1),
        7: np.rot90(expected, 2).swapaxes(0, 1),
        8: np.rot90(expected, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"picture.{kind}"
    Image.fromarray(np.ascontiguousarray(stored[orientation])).save(path, exif=exif, quality=95)

    recording = reader.read_segments(path, [(0.0, 1.0), (500.0, 600.0)])

    assert recording.info.duration_s is None
    assert (recording.info.width, recording.info.height) == (96, 64)
    for segment in recording.segments:
        assert segment.frames is not None
        assert len(segment.frames) == 1
        assert_looks_like(segment.frames[0], expected)
        assert segment.missing == {"audio": "no audio track"}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_variable_frame_rate_goes_by_time(tmp_path: Path, reader: MediaReader, suffix: str) -> None:
    at_s = [0.0, 0.04, 0.08, 0.12, 1.5, 1.54, 3.0, 3.9]
    path = encode(tmp_path / f"vfr{suffix}", [grey(20 + 25 * i) for i in range(len(at_s))], at_s=at_s)

    segments = reader.read_segments(path, [(0.0, 4.0), (0.0, 0.16), (2.0, 2.5)], n_frames=4).segments

    # Moments 0.5, 1.5, 2.5, 3.5 show frames 3, 4, 5, 6; by number it would have been 1, 3, 5, 7.
    assert levels(segments[0]) == pytest.approx([95, 120, 145, 170], abs=2)
    assert levels(segments[1]) == pytest.approx([20, 45, 70, 95], abs=2)
    assert levels(segments[2]) == pytest.approx([145], abs=2)  # one frame is shown all along, and given once


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("long.mp4", "libx264", {"g": "50", "bf": "3"}),
        ("long.mkv", "libx264", {"g": "250", "bf": "3"}),
        ("long.webm", "libvpx", {"g": "40", "deadline": "realtime", "cpu-used": "8", "threads": "1"}),
        ("long.avi", "mpeg4", {"g": "30", "b": "4M"}),
        ("long.ts", "mpeg2video", {"g": "25", "bf": "2", "b": "4M"}),
    ],
)
def test_seeking_finds_the_frames_that_decoding_through_finds(
    tmp_path: Path, reader: MediaReader, name: str, codec: str, options: dict[str, str]
) -> None:
    shades = [grey(16 + (7 * i) % 220, 48, 64) for i in range(1000)]
    path = encode(tmp_path / name, shades, codec=codec, options=options)
    spans = [(30.0, 31.0), (3.0, 5.0), (20.02, 20.1), (3.5, 39.0), (33.0, 33.4), (38.9, 39.9)]

    together = reader.read_segments(path, spans, n_frames=4).segments

    for (start_s, end_s), segment in zip(spans, together, strict=True):
        moments_s = [start_s + (k + 0.5) / 4 * (end_s - start_s) for k in range(4)]
        expected = [16 + (7 * int(moment_s * 25 + 1e-6)) % 220 for moment_s in dict.fromkeys(moments_s)]
        found = levels(segment)
        distinct = [level for i, level in enumerate(expected) if i == 0 or level != expected[i - 1]]
        assert found == pytest.approx(distinct, abs=4)
        alone = reader.read_segments(path, [(start_s, end_s)], n_frames=4).segments[0]
        np.testing.assert_array_equal(segment.frames, alone.frames)


def test_frames_are_scaled_to_640_with_square_pixels(tmp_path: Path, reader: MediaReader) -> None:
    wide = encode(tmp_path / "wide.mp4", [grey(90, 720, 1280)] * 3)
    tall = encode(tmp_path / "tall.mp4", [grey(90, 720, 1280)] * 3, turned=(90, False, False))
    pal = encode(tmp_path / "pal.mkv", [grey(90, 288, 352)] * 3, aspect=Fraction(12, 11))
    shapes = []
    for path in (wide, tall, pal):
        frames = reader.read_segments(path, [(0.0, 0.1)]).segments[0].frames
        assert frames is not None
        shapes.append(frames.shape[1:])
    assert shapes == [(360, 640, 3), (640, 360, 3), (288, 384, 3)]
    assert (reader.probe(tall).width, reader.probe(tall).height) == (720, 1280)


def test_each_track_may_be_missing(tmp_path: Path, reader: MediaReader) -> None:
    both = encode(tmp_path / "both.mp4", [grey(50)] * 25, sound_s=2.0)
    mute = encode(tmp_path / "mute.mp4", [grey(50)] * 25)

    inside, after_video, after_both = reader.read_segments(both, [(0.0, 1.0), (1.2, 1.8), (3.0, 4.0)]).segments
    assert inside.samples is not None
    assert inside.frames is not None
    assert inside.missing == {}
    assert after_video.samples is not None
    assert after_video.missing == {"video": "no frames in this span"}
    assert after_both.missing == {"audio": "no audio in this span", "video": "no frames in this span"}

    info = reader.probe(mute)
    assert (info.has_audio, info.has_video, info.audio_missing) == (False, True, "no audio track")


def test_a_moment_without_length_has_one_frame_and_no_frames_may_be_asked_for(
    tmp_path: Path, reader: MediaReader
) -> None:
    path = encode(tmp_path / "a.mp4", [grey(50 + i) for i in range(25)])
    assert levels(reader.read_segments(path, [(0.5, 0.5)]).segments[0]) == pytest.approx([62], abs=2)
    segment = reader.read_segments(path, [(0.0, 1.0)], n_frames=0).segments[0]
    assert segment.frames is None
    assert segment.missing == {"audio": "no audio track"}


def test_an_animation_has_times(tmp_path: Path, reader: MediaReader) -> None:
    path = tmp_path / "a.gif"
    pictures = [Image.fromarray(grey(level)) for level in (40, 120, 200)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=500)
    assert levels(reader.read_segments(path, [(0.0, 1.5)]).segments[0]) == pytest.approx([40, 120, 200], abs=3)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (MediaLimits(max_pixels=96 * 64 - 1), "96 x 64 pixels"),
        (MediaLimits(max_frames=10), "more than 10 video frames"),
        (MediaLimits(max_result_bytes=30_000), "segments take more than 30,000 bytes"),
    ],
)
def test_limits_on_pictures(tmp_path: Path, limits: MediaLimits, message: str) -> None:
    path = encode(tmp_path / "a.mp4", [grey(50 + i) for i in range(25)])
    with MediaReader(limits) as reader, pytest.raises(MediaError, match=message):
        reader.read_segments(path, [(0.0, 1.0)])


def test_segments_can_be_had_one_at_a_time(tmp_path: Path, reader: MediaReader) -> None:
    path = encode(tmp_path / "a.mp4", [grey(50 + i) for i in range(25)], sound_s=1.0)
    spans = [(0.6, 0.9), (0.0, 0.3), (0.3, 0.6)]
    done: list[tuple[int, int]] = []
    at_once = reader.read_segments(path, spans, progress=lambda n, of: done.append((n, of))).segments
    assert done == [(1, 3), (2, 3), (3, 3)]

    one_by_one = dict(reader.iter_segments(path, spans))

    assert list(one_by_one) == [1, 2, 0]  # in the order of their starts
    for index, segment in one_by_one.items():
        np.testing.assert_array_equal(segment.frames, at_once[index].frames)
        np.testing.assert_array_equal(segment.samples, at_once[index].samples)

    for _ in reader.iter_segments(path, spans):
        break  # an iterator that is dropped midway must not spoil the next answer
    assert reader.read_segments(path, spans[:1]).segments[0].frames is not None
