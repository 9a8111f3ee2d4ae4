"""The process that decodes, started by `reader`; it can be killed at any time.

Reads requests from standard input and answers on standard output (`protocol`); lives for as many requests as its
reader sends. Before the first one it gives up what decoding does not need: it can no longer write a byte to a file or
dump core, and its memory, processor time and open files are capped, where the system has such limits. It prints
nothing, keeps nothing of a recording, and imports neither numpy nor the rest of the runtime, to start fast.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

import av

from mechm_runtime.errors import MediaError
from mechm_runtime.media.audio import AudioTrack
from mechm_runtime.media.limits import MediaLimits
from mechm_runtime.media.protocol import MAX_REQUEST_BYTES, ArraySpec, Raw, read_header, write_message
from mechm_runtime.media.segments import MIN_SAMPLES
from mechm_runtime.media.source import (
    audio_stream,
    image_format,
    measured_duration_s,
    open_container,
    open_regular,
    stated_duration_s,
    stated_end_s,
    video_stream,
)
from mechm_runtime.media.video import Orientation, Picture, StillPicture, VideoTrack, orientation_of, shown_size

MAX_OPEN_FILES = 64
FLOAT_BYTES = 4
CUT_OFF_S = 0.5
"""Decoded data may end this much before the stated duration (rounding, padding) without being called cut off."""


def main() -> None:
    """Answer requests until standard input ends."""
    requests = cast(BufferedIOBase, sys.stdin.buffer)
    replies = cast(BufferedIOBase, os.fdopen(os.dup(1), "wb"))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a library that prints must not write into the protocol
    give_up_privileges()
    recordings = Recordings()
    while (request := read_header(requests, max_bytes=MAX_REQUEST_BYTES)) is not None:
        limits = MediaLimits.from_dict(request["limits"])
        confine(limits)
        try:
            answer(request, limits, recordings, replies)
        except MediaError as error:
            write_message(replies, {"kind": "error", "message": str(error), "hint": error.hint})
        except (MemoryError, av.error.MemoryError):
            write_message(
                replies,
                {
                    "kind": "error",
                    "message": f"needs more than {limits.memory_bytes >> 20:,} MiB of memory to decode",
                    "hint": "cut the recording, or raise MediaLimits.memory_bytes",
                },
            )


def give_up_privileges() -> None:
    """Cap for good what no request needs."""
    try:
        import resource
    except ImportError:  # Windows: the reader's timeout is the only cap there
        return
    for name, cap in (("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0), ("RLIMIT_NOFILE", MAX_OPEN_FILES)):
        with suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (cap, cap))


def confine(limits: MediaLimits) -> None:
    """Cap address space and processor time for one request; the kernel ends the process above the latter."""
    try:
        import resource
    except ImportError:
        return
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = math.ceil(usage.ru_utime + usage.ru_stime + limits.timeout_s) + 1
    for name, cap in (("RLIMIT_AS", limits.memory_bytes), ("RLIMIT_CPU", cpu_s)):
        with suppress(AttributeError, ValueError, OSError):
            kind = getattr(resource, name)
            _, hard = resource.getrlimit(kind)
            resource.setrlimit(kind, (cap if hard == resource.RLIM_INFINITY else min(cap, hard), hard))


def answer(request: dict[str, Any], limits: MediaLimits, recordings: Recordings, replies: BufferedIOBase) -> None:
    """Send the recording's facts, then a message per span in the order of their starts, then `done`.

    request: `path`, and where segments are wanted `spans` ([[start_s, end_s], …]) and `n_frames`.
    Raises: MediaError: the recording cannot be read at all, or breaks a limit.
    """
    spans: list[tuple[float, float]] = [(start, end) for start, end in request["spans"]]
    with recordings.open(str(request["path"]), limits, keep=not spans) as recording:
        write_message(replies, {"kind": "info", "info": recording.info})
        for index in sorted(range(len(spans)), key=spans.__getitem__):
            header, arrays = recording.segment(*spans[index], n_frames=int(request["n_frames"]))
            write_message(replies, {"kind": "segment", "index": index, **header}, arrays)
        write_message(replies, {"kind": "done", "notes": recording.notes()})


class Recordings:
    """Opens recordings. One that was asked for its facts alone stays open: its segments are usually wanted next."""

    def __init__(self) -> None:
        self._kept: tuple[tuple[object, ...], ExitStack, Recording] | None = None

    @contextmanager
    def open(self, path: str, limits: MediaLimits, *, keep: bool) -> Iterator[Recording]:
        """A recording whose spans have not been read yet.

        keep: leave it open for the next call, which closes it unless it is for the same file, unchanged.
        Raises: MediaError: it cannot be read.
        """
        identity = (path, limits, _state_of(path))
        kept, self._kept = self._kept, None
        if kept is not None and kept[0] != identity:
            kept[1].close()
            kept = None
        with ExitStack() as stack:
            if kept is None:
                recording = Recording(path, limits, stack)
            else:
                stack.push(kept[1])
                recording = kept[2]
            yield recording
            if keep:
                self._kept = (identity, stack.pop_all(), recording)


def _state_of(path: str) -> tuple[int, ...] | None:
    """What changes when a file does; None where there is none."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Recording:
    """One file, opened, its first samples and frame decoded.

    Audio and video each have their own container, since they are read at different positions.
    info: the fields of `MediaInfo`.
    """

    def __init__(self, path: str, limits: MediaLimits, stack: ExitStack) -> None:
        self._audio: AudioTrack | None = None
        self._video: VideoTrack | None = None
        self._still: Picture | None = None
        self._orientation = Orientation()
        self.info: dict[str, Any] = {"has_audio": False, "has_video": False}
        with open_regular(path, limits) as file:
            kind = image_format(file)
            if kind is not None:
                self._open_still(StillPicture(file, kind, limits), kind)
                return
        container = stack.enter_context(open_container(path, limits))
        sound = audio_stream(container, limits)
        moving = video_stream(container, limits)
        duration_s = stated_duration_s(container)
        self.info.update(container=container.format.name, duration_s=duration_s)
        if not isinstance(moving, str):
            own = stack.enter_context(open_container(path, limits))
            stream = video_stream(own, limits)
            if not isinstance(stream, str):  # the same file a moment later: the answer is the same
                self._open_video(VideoTrack(own, stream, limits))
        else:
            self.info["video_missing"] = moving
        if not isinstance(sound, str):
            self._open_audio(AudioTrack(container, sound, limits))
        else:
            self.info["audio_missing"] = sound
        if not (self.info["has_audio"] or self.info["has_video"]):
            raise nothing_inside(self.info["audio_missing"], self.info["video_missing"])
        if duration_s is None:
            self.info["duration_s"] = measured_duration_s(path, limits)

    def _open_still(self, still: StillPicture, kind: str) -> None:
        self._still = still.picture
        width, height = still.shown_size
        self.info.update(
            container="image", duration_s=None, audio_missing="no audio track", has_video=True, video_codec=kind.lower()
        )
        self.info.update(width=width, height=height)

    def _open_video(self, track: VideoTrack) -> None:
        frame = track.prime()
        if frame is None:
            self.info["video_missing"] = "undecodable" if track.damaged else "a video track without a single frame"
            return
        self._video = track
        orientation = self._orientation = orientation_of(frame)
        width, height = shown_size(frame, track.stream)
        if orientation.transpose:
            width, height = height, width
        # Swapping the axes is a clockwise quarter turn, then a mirror; flipping top to bottom is half a turn, then
        # a mirror. So the three flags are a number of turns, then a mirror where an odd number of them is set.
        turns = orientation.transpose + 2 * orientation.flip_y
        n_mirrors = orientation.transpose + orientation.flip_x + orientation.flip_y
        self.info.update(
            has_video=True,
            video_codec=track.stream.codec_context.codec.canonical_name,
            width=width,
            height=height,
            rotation_degrees=90 * turns,
            mirrored=n_mirrors % 2 == 1,
        )

    def _open_audio(self, track: AudioTrack) -> None:
        context = track.stream.codec_context
        if not track.prime():
            self.info["audio_missing"] = "undecodable" if track.damaged else "an audio track of zero length"
            return
        self._audio = track
        self.info.update(
            has_audio=True,
            audio_codec=context.codec.canonical_name,
            sample_rate=context.sample_rate,
            channels=context.layout.nb_channels,
        )

    def segment(
        self, start_s: float, end_s: float, *, n_frames: int
    ) -> tuple[dict[str, Any], list[tuple[ArraySpec, list[Raw]]]]:
        """The header and the arrays of one span; starts must not go backwards from call to call."""
        missing: dict[str, str] = {}
        arrays: list[tuple[ArraySpec, list[Raw]]] = []
        samples = self._samples(start_s, end_s, missing)
        if samples:
            arrays.append((ArraySpec("float32", (len(samples) // FLOAT_BYTES,)), [samples]))
        header: dict[str, Any] = {"samples": bool(samples), "frames": False, "missing": missing}
        pictures = self._pictures(start_s, end_s, n_frames, missing) if n_frames else []
        if pictures:
            width, height = pictures[0].width, pictures[0].height
            arrays.append(
                (
                    ArraySpec("uint8", (len(pictures), height, width, 3)),
                    [picture.rgb for picture in pictures],
                )
            )
            turn = self._orientation
            header["frames"] = True
            header["turn"] = [turn.transpose, turn.flip_x, turn.flip_y]
        return header, arrays

    def _samples(self, start_s: float, end_s: float, missing: dict[str, str]) -> bytes:
        if self._audio is None:
            missing["audio"] = self.info["audio_missing"]
            return b""
        samples = self._audio.read(start_s, end_s)
        if len(samples) >= MIN_SAMPLES * FLOAT_BYTES:
            return samples
        if samples or end_s - start_s < MIN_SAMPLES / 16_000:
            missing["audio"] = "shorter than 25 ms"
        else:
            missing["audio"] = self._after(self._audio, start_s) or "no audio in this span"
        return b""

    def _pictures(self, start_s: float, end_s: float, n_frames: int, missing: dict[str, str]) -> list[Picture]:
        if self._still is not None:
            return [self._still]
        if self._video is None:
            missing["video"] = self.info["video_missing"]
            return []
        pictures: list[Picture] = []
        last = None
        for k in range(n_frames):
            frame = self._video.frame_at(start_s + (k + 0.5) / n_frames * (end_s - start_s))
            if frame is None or frame is last:
                continue
            last = frame
            picture = self._video.picture(frame)
            # A stream may change its size midway; an array cannot, so the span keeps its first size.
            if not pictures or (picture.width, picture.height) == (pictures[0].width, pictures[0].height):
                pictures.append(picture)
        if not pictures:
            missing["video"] = self._after(self._video, start_s) or "no frames in this span"
        return pictures

    @staticmethod
    def _after(track: AudioTrack | VideoTrack, start_s: float) -> str:
        """Says that a track's data ended before the end it states, where that is why a span holds nothing."""
        ended_s, stated_s = track.end_s, stated_end_s(track.container, track.stream)
        if ended_s is None or stated_s is None or not ended_s + CUT_OFF_S < stated_s or not start_s < stated_s:
            return ""
        return f"damaged or cut off after {ended_s:.1f} s"

    def notes(self) -> list[str]:
        """Facts about the whole recording, once its spans have been read."""
        tracks = (("audio", self._audio), ("video", self._video))
        return [
            f"{track.damaged} damaged {name} packets were skipped" for name, track in tracks if track and track.damaged
        ]


def nothing_inside(audio_missing: str, video_missing: str) -> MediaError:
    """The error for a container that opens and holds nothing to analyse."""
    reasons = [reason for reason in (audio_missing, video_missing) if not reason.startswith("no ")]
    if not reasons:
        return MediaError("has neither an audio nor a video track")
    if any(reason.startswith("undecodable") for reason in reasons):
        return MediaError("has no track that can be decoded", hint="convert it to mp4 (H.264, AAC) or wav")
    return MediaError(f"has {' and '.join(reasons)}", hint="record it again: there is nothing inside to analyse")
