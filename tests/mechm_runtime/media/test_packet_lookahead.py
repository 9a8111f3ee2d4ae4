"""Frames that nobody looks at are not decoded, and those that are shown are the same to the bit as if all were."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from mechm_runtime.media import MediaLimits, MediaReader
from mechm_runtime.media.recording import Recordings
from mechm_runtime.media.source import open_container, video_stream
from mechm_runtime.media.video import VideoTrack

N_FRAMES, RATE = 150, 25


def film(path: Path, codec: str, options: dict[str, str], *, at_s: list[float] | None = None) -> Path:
    """A bright square that moves over noise, so that no two frames are alike."""
    noise = np.random.default_rng(0).integers(0, 120, (64, 96, 3), dtype=np.uint8)
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height = 96, 64
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for index in range(N_FRAMES):
            pixels = noise.copy()
            row, column = (3 * index) % 48, (5 * index) % 80
            pixels[row : row + 16, column : column + 16] = 255 - index
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if at_s is not None:
                frame.pts = round(RATE * at_s[index])
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def all_frames(path: Path) -> list[tuple[float, NDArray[np.uint8]]]:
    """Every frame with its time, decoded through from the start by PyAV alone."""
    with av.open(str(path)) as container:
        zero_s = (container.start_time or 0) / av.time_base
        return [
            (float(frame.time) - zero_s, frame.to_ndarray(format="rgb24", interpolation="BICUBIC"))
            for frame in container.decode(video=0)
        ]


FILMS = {
    "pyramid.mp4": ("libx264", {"g": "250", "bf": "3", "x264-params": "b-pyramid=normal"}),
    "open.mp4": ("libx264", {"g": "25", "bf": "3", "x264-params": "open-gop=1"}),
    "short.mkv": ("libx264", {"g": "12", "bf": "2"}),
    "plain.mp4": ("libx264", {"g": "40", "bf": "0"}),
    "stream.ts": ("mpeg2video", {"g": "25", "bf": "2", "b": "4M"}),
    "old.avi": ("mpeg4", {"g": "30", "b": "4M"}),
    "old.mp4": ("mpeg4", {"g": "30", "bf": "2", "b": "4M"}),
    "web.webm": ("libvpx", {"g": "40", "deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "1", "threads": "1"}),
    "intra.avi": ("mjpeg", {}),
}


@pytest.mark.parametrize("name", FILMS)
def test_what_is_shown_is_what_decoding_everything_shows(name: str, tmp_path: Path) -> None:
    path = film(tmp_path / name, *FILMS[name])
    expected = all_frames(path)
    end_s = expected[-1][0] + 1 / RATE
    random = np.random.default_rng(1)
    moments = [*np.sort(random.uniform(0, end_s, 25)).tolist(), end_s - 0.01]
    if path.suffix != ".ts":  # so short a stream has too few times to seek back by
        moments += [0.5, 0.52, 5.0, 0.01, 3.0, 2.0]
    with open_container(str(path), MediaLimits()) as container:
        stream = video_stream(container, MediaLimits())
        assert not isinstance(stream, str)
        track = VideoTrack(container, stream, MediaLimits())
        track.prime()
        for moment_s in moments:
            frame = track.frame_at(moment_s)
            assert frame is not None
            shown = [pixels for time_s, pixels in expected if time_s <= moment_s + 1e-9][-1]
            picture = track.picture(frame)
            found = np.frombuffer(picture.rgb, np.uint8).reshape(picture.height, picture.width, 3)
            assert np.array_equal(found, shown), f"at {moment_s}"
        assert track.damaged == 0


@pytest.mark.parametrize(
    ("name", "most"),
    [("pyramid.mp4", 0.6), ("short.mkv", 0.6), ("stream.ts", 0.6), ("plain.mp4", 1.0), ("intra.avi", 0.1)],
)
def test_what_nobody_looks_at_is_not_decoded(name: str, most: float, tmp_path: Path) -> None:
    path = film(tmp_path / name, *FILMS[name])
    with open_container(str(path), MediaLimits()) as container:
        stream = video_stream(container, MediaLimits())
        assert not isinstance(stream, str)
        track = VideoTrack(container, stream, MediaLimits())
        track.prime()
        for moment_s in (0.9, 1.9, 2.9, 3.9, 4.9):
            assert track.frame_at(moment_s) is not None
        assert 5 <= track._n_decoded <= most * N_FRAMES


def test_a_frame_that_is_shown_for_long_is_not_passed_over(tmp_path: Path) -> None:
    """With a variable rate the frame before a pause is far from the moment, and still the one that is shown."""
    at_s = [k / RATE if k < 60 else 10 + k / RATE for k in range(N_FRAMES)]
    path = film(tmp_path / "pause.mkv", "libx264", {"g": "250", "bf": "3"}, at_s=at_s)
    expected = all_frames(path)
    with MediaReader() as reader:
        (segment,) = reader.read_segments(path, [(2.4, 12.0)], n_frames=1).segments
    assert segment.frames is not None
    assert np.array_equal(segment.frames[0], expected[59][1])


def test_a_recording_that_was_probed_is_opened_once(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", "libx264", {"g": "25"})
    recordings, limits = Recordings(), MediaLimits()

    def opened(*, keep: bool, limits: MediaLimits = limits, path: Path = path) -> Any:
        with recordings.open(str(path), limits, keep=keep) as recording:
            return recording

    probed = opened(keep=True)
    assert opened(keep=True) is probed
    assert opened(keep=False) is probed
    assert opened(keep=True) is not probed, "its spans were read: it does not go back"
    other = opened(keep=True, limits=MediaLimits(max_frames=7))
    assert opened(keep=True) is not other
    status = path.stat()
    probed = opened(keep=True)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert opened(keep=True) is not probed, "the file has changed"
    probed = opened(keep=True)
    second = film(tmp_path / "b.mp4", "libx264", {"g": "25"})
    assert opened(keep=True, path=second) is not probed


def test_a_changed_file_is_read_anew_after_its_probe(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", "libx264", {"g": "25"})
    with MediaReader() as reader:
        assert reader.probe(path).width == 96
        before = reader.read_segments(path, [(1.0, 2.0)]).segments[0].frames
        assert reader.probe(path).width == 96
        film(path, "mpeg4", {"b": "100k"})
        after = reader.read_segments(path, [(1.0, 2.0)])
    assert after.info.video_codec == "mpeg4"
    assert before is not None
    assert not np.array_equal(before, after.segments[0].frames)
