"""Result types of decoding: the facts of a recording, and the samples and frames of its requested spans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAMPLE_RATE = 16_000
"""Samples per second of every segment, whatever the recording's own rate."""

MAX_SIDE = 640
"""Pixels of a frame's longer side, unless `MediaLimits` says otherwise; larger frames are scaled down, smaller ones are
kept."""

MIN_SAMPLES = SAMPLE_RATE * 25 // 1000
"""Fewer samples than one 25 ms analysis window hold no frame of a spectrogram, and count as missing."""


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """The facts of one recording, as its own container and first frames state them.

    container: FFmpeg's name of the format, for example `mov,mp4,m4a,3gp,3g2,mj2`; `image` for a still picture.
    duration_s: None for a still picture, and where the file does not state it.
    has_audio, has_video: a track is there and its first frame decodes. A cover picture in a music file is no video.
    audio_missing, video_missing: the reason where there is none; empty otherwise.
    width, height: pixels as shown, upright and with square pixels, before scaling; None without video.
    rotation_degrees: clockwise turn (0, 90, 180, 270) from the stored to the shown picture; a mirrored picture
        is turned first and then mirrored left to right (`mirrored`).
    """

    container: str
    duration_s: float | None
    has_audio: bool
    has_video: bool
    audio_missing: str = ""
    video_missing: str = ""
    audio_codec: str | None = None
    sample_rate: int | None = None
    channels: int | None = None
    video_codec: str | None = None
    width: int | None = None
    height: int | None = None
    rotation_degrees: int = 0
    mirrored: bool = False


@dataclass(frozen=True, slots=True)
class Segment:
    """Samples and frames of one span of a recording.

    start_s, end_s: the span as requested, in seconds from the recording's start.
    samples: float32 (n_samples,), mono, 16 kHz, in [-1, 1]; shorter than the span where the recording is shorter.
    frames: uint8 (n, height, width, 3), RGB, upright, longer side at most `max_side`, in order of time. n is lower
        than requested where the span holds fewer different frames.
    missing: `audio` or `video` -> the reason why `samples` or `frames` is None.
    """

    start_s: float
    end_s: float
    samples: NDArray[np.float32] | None
    frames: NDArray[np.uint8] | None
    missing: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class MediaSegments:
    """One segment per span, in the order of the spans.

    notes: one line each about the recording as a whole, such as damaged data.
    """

    info: MediaInfo
    segments: tuple[Segment, ...]
    notes: tuple[str, ...] = ()
