"""Reads frames of one video track by time, or one still picture, as RGB, inside the decoding process.

The frame at a time is the one that a player shows then: the last whose presentation time is not later. Frames are never
selected by number, so a variable frame rate needs no special case. Over long gaps between requested times it seeks to
the key frame before the next one. libswscale scales frames. Turning them upright is left to the reader, which gets
three flags.

Runs inside `worker`; returns bytes, since that process does without numpy.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO

import av
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from mechm_runtime.errors import MediaError
from mechm_runtime.media.limits import MediaLimits
from mechm_runtime.media.packet_lookahead import PacketLookahead
from mechm_runtime.media.protocol import Raw
from mechm_runtime.media.source import check_pixels, select_only, start_s, too_long

SEEK_AHEAD_S = 1.0
"""Over shorter gaps the frames in between are decoded: a seek goes to the key frame before and seldom saves work."""

EARLY_S = 0.5
"""A first frame that comes at most this late (edit lists, start of capture) is also shown before its time."""

SEEK_MARGINS_S = (0.2, 2.0, 10.0, 60.0, float("inf"))
"""Margins before the requested time to seek to, one after the other, until the first decoded frame is not later.
A container's index holds decoding times, and with reordered frames a key frame is shown later than it is decoded,
usually by less than 0.2 s."""

EXIF_ORIENTATION = 0x0112
MIN_TRANSPOSED_ORIENTATION = 5  # this value of the EXIF tag and those above it swap width and height

MAX_DAMAGED_PACKETS = 10_000
DEFAULT_FRAME_S = 0.04
"""Assumed duration of a frame that states none, in a stream without a frame rate."""

DEFAULT_KEY_FRAME_INTERVAL_S = 5.0
"""Assumed distance of key frames in a container without an index."""


@dataclass(frozen=True, slots=True)
class Orientation:
    """Operations that turn a stored frame upright: swap its axes first, then mirror."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """A frame in its stored orientation: `rgb` holds height * width * 3 bytes, rows from the top."""

    width: int
    height: int
    rgb: Raw


class VideoTrack:
    """Reads frames of one video track by time; fastest where the requested times increase.

    damaged: packets that did not decode.
    """

    def __init__(self, container: InputContainer, stream: VideoStream, limits: MediaLimits) -> None:
        self.damaged = 0
        self.container = container
        self.stream = stream
        self._limits = limits
        self._zero_s = start_s(container)
        select_only(container, stream)
        self._time_base = Fraction(stream.time_base or 1)
        self._packets = PacketLookahead(container, stream)
        self._reformatter = VideoReformatter()
        self._n_decoded = 0
        self._frames = self._decoded()
        self._current: tuple[float, VideoFrame] | None = None
        self._following: tuple[float, VideoFrame] | None = None
        self._at_start = False  # the current frame is the track's first
        self._end_s: float | None = None  # known once the last frame has been decoded

    def prime(self) -> VideoFrame | None:
        """Decode the first frame; None where the track has none."""
        self._decode_first_two()
        self._at_start = True
        return None if self._current is None else self._current[1]

    @property
    def end_s(self) -> float | None:
        """Seconds at which the last frame ends; None while that has not been reached."""
        return self._end_s

    def frame_at(self, time_s: float) -> VideoFrame | None:
        """The frame shown at a time; None before the first frame and after the last."""
        if self._current is None or (self._end_s is not None and time_s >= self._end_s):
            return None
        self._packets.set_target(self._offset(time_s))
        self._move_near(time_s, self._current[0])
        while self._following is not None and self._following[0] <= time_s:
            self._current = self._following
            self._at_start = False
            self._following = next(self._frames, None)
            if self._following is None:
                self._find_end()
        if self._end_s is not None and time_s >= self._end_s:
            return None
        return self._shown(time_s)

    def picture(self, frame: VideoFrame) -> Picture:
        """A frame as RGB with square pixels, longer side at most `max_side`."""
        width, height = shown_size(frame, self.stream)
        scale = min(1.0, self._limits.max_side / max(width, height))
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
        scaled = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation=Interpolation.BICUBIC
        )
        plane = scaled.planes[0]
        stored = memoryview(plane)
        row, stride = 3 * width, plane.line_size
        if stride == row:
            return Picture(width, height, stored[: row * height])
        return Picture(width, height, b"".join(bytes(stored[y * stride : y * stride + row]) for y in range(height)))

    def _shown(self, time_s: float) -> VideoFrame | None:
        """The current frame, unless it is later than the requested time."""
        if self._current is None or self._current[0] > time_s + EARLY_S:
            return None
        return self._current[1]

    def _move_near(self, time_s: float, reached_s: float) -> None:
        """Seek where the requested time lies behind, or so far ahead that a key frame may be nearer."""
        ahead = time_s >= reached_s
        if ahead and time_s <= (reached_s if self._following is None else self._following[0]) + SEEK_AHEAD_S:
            return
        if ahead and (self._end_s is not None or self._key_frame_s(time_s) <= reached_s):
            return
        if not ahead and time_s >= reached_s - EARLY_S and self._at_start:
            return
        for margin_s in SEEK_MARGINS_S:
            target_s = max(time_s - margin_s, 0.0)
            if not self._seek(target_s):
                return  # a format that cannot seek: later frames are decoded up to, earlier ones are not found
            self._decode_first_two()
            if self._current is not None and (self._current[0] <= time_s or target_s == 0.0):
                return

    def _decode_first_two(self) -> None:
        """Decode the next two frames, where there are that many, as the current and the following one."""
        self._current = next(self._frames, None)
        self._following = next(self._frames, None)
        if self._following is None:
            self._find_end()

    def _key_frame_s(self, time_s: float) -> float:
        """Seconds of the key frame before a time by the container's index; a guess where it has none."""
        entries = self.stream.index_entries
        if not entries or len(entries) < 2:
            return time_s - DEFAULT_KEY_FRAME_INTERVAL_S
        index = entries.search_timestamp(self._offset(time_s - SEEK_MARGINS_S[0]), backward=True)
        return float(entries[index].timestamp * self._time_base) - self._zero_s if index >= 0 else 0.0

    def _offset(self, time_s: float) -> int:
        return int((time_s + self._zero_s) / self._time_base)

    def _seek(self, time_s: float) -> bool:
        try:
            self.container.seek(self._offset(max(time_s, 0.0)), stream=self.stream)
        except av.FFmpegError:
            return False
        self._end_s = None
        self._at_start = time_s <= 0.0
        self._packets.restart()
        self._frames = self._decoded()
        return True

    def _find_end(self) -> None:
        """Set the end of the track from the last frame's own duration, or from the frame rate."""
        if self._current is None:
            return
        time_s, frame = self._current
        rate = self.stream.average_rate
        lasts_s = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
        if not 0.0 < lasts_s < self._limits.max_duration_s:
            lasts_s = 1.0 / float(rate) if rate else DEFAULT_FRAME_S
        self._end_s = time_s + lasts_s

    def _decoded(self) -> Iterator[tuple[float, VideoFrame]]:
        """Yield frames with their times from the container's position on; damaged packets are counted and skipped."""
        last_s = 0.0
        try:
            for packet in self._packets:
                try:
                    frames = packet.decode()
                except MemoryError:
                    raise
                except (av.FFmpegError, ValueError):
                    self.damaged += 1
                    if self.damaged > MAX_DAMAGED_PACKETS:
                        return
                    continue
                for frame in frames:
                    self._check_limits(frame)
                    time_s = last_s + DEFAULT_FRAME_S if frame.time is None else frame.time - self._zero_s
                    if time_s > self._limits.max_duration_s:
                        raise too_long(time_s, self._limits)
                    last_s = time_s
                    yield time_s, frame
        except MemoryError:
            raise
        except av.FFmpegError:
            self.damaged += 1

    def _check_limits(self, frame: VideoFrame) -> None:
        """Compare a decoded frame with the limits.

        Raises: MediaError: it is too large, or too many frames were decoded.
        """
        check_pixels(frame.width, frame.height, self._limits)
        self._n_decoded += 1
        if self._n_decoded > self._limits.max_frames:
            raise MediaError(
                f"needs more than {self._limits.max_frames:,} video frames decoded",
                hint="ask for fewer spans at a time, or raise MediaLimits.max_frames",
            )


class StillPicture:
    """A picture file, shown at every time. Pillow applies its EXIF orientation here."""

    def __init__(self, file: BinaryIO, kind: str, limits: MediaLimits) -> None:
        """Decode the picture.

        Raises: MediaError: above `max_pixels`, or not decodable.
        """
        from PIL import Image, ImageOps

        # Pillow's own check of sizes warns and raises at other limits; `check_pixels` decides, before any decoding.
        Image.MAX_IMAGE_PIXELS = None
        largest = (limits.max_side, limits.max_side)
        try:
            with Image.open(file, formats=[kind]) as opened:
                check_pixels(opened.width, opened.height, limits)
                sides = opened.size
                opened.draft("RGB", largest)  # a jpeg is decoded at a fraction of its size, never below this
                upright = ImageOps.exif_transpose(opened)
                turned = opened.getexif().get(EXIF_ORIENTATION, 1) >= MIN_TRANSPOSED_ORIENTATION
                upright = upright.convert("RGB")
        except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
            raise MediaError("is a picture that cannot be decoded", hint="save the picture again") from error
        upright.thumbnail(largest, Image.Resampling.BICUBIC)
        self.shown_size = (sides[1], sides[0]) if turned else sides
        self.picture = Picture(upright.width, upright.height, upright.tobytes())


def shown_size(frame: VideoFrame, stream: VideoStream) -> tuple[int, int]:
    """Width and height of a frame with square pixels, in its stored orientation."""
    ratio = stream.sample_aspect_ratio
    width, height = frame.width, frame.height
    # A ratio outside of these bounds is an error in the file: anamorphic video stays within 1:2 and 2:1.
    if ratio and 0.4 <= ratio <= 2.5:
        width = max(1, round(width * float(ratio)))
    return width, height


def orientation_of(frame: VideoFrame) -> Orientation:
    """Operations that turn a frame upright, from its display matrix, to the nearest quarter turn.

    The matrix maps a stored point (p, q) to (a p + c q, b p + d q), with y pointing down (libavutil/display.h).
    """
    try:
        side_data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # av 18.1 raises where any side data is of a kind that it does not know; a mirrored frame then stays mirrored.
        return {
            90: Orientation(transpose=True, flip_y=True),
            180: Orientation(flip_x=True, flip_y=True),
            270: Orientation(transpose=True, flip_x=True),
        }.get(round(frame.rotation / 90) * 90 % 360, Orientation())
    if not isinstance(side_data, SideData):
        return Orientation()
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(side_data)[:36])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(transpose=True, flip_x=c < 0, flip_y=b < 0)
    return Orientation(flip_x=a < 0, flip_y=d < 0)
