"""One open recording inside the decoding process: its facts, and the samples and frames of its spans.

Runs inside `worker`; arrays are bytes here, since that process does without numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mechm_runtime.errors import MediaError
from mechm_runtime.media.audio import AudioTrack
from mechm_runtime.media.limits import MediaLimits
from mechm_runtime.media.protocol import ArraySpec, Raw
from mechm_runtime.media.segments import MIN_SAMPLES, SAMPLE_RATE
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

FLOAT_BYTES = 4
CUT_OFF_S = 0.5
"""Decoded data may end this much before the stated duration (rounding, padding) without being called cut off."""


class Recordings:
    """Opens recordings. One that was only probed stays open, since its segments are usually requested next."""

    def __init__(self) -> None:
        self._kept: tuple[tuple[object, ...], ExitStack, Recording] | None = None

    @contextmanager
    def open(self, path: str, limits: MediaLimits, *, keep: bool) -> Iterator[Recording]:
        """A recording whose spans have not been read yet.

        keep: leave it open for the next call, which closes it unless it asks for the same, unchanged file.
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
    """Device, inode, size and modification time of a file, which differ when it was changed; None without a file."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Recording:
    """One open file, of which the first samples and the first frame are decoded.

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
        audio = audio_stream(container, limits)
        video = video_stream(container, limits)
        duration_s = stated_duration_s(container)
        self.info.update(container=container.format.name, duration_s=duration_s)
        if not isinstance(video, str):
            video_container = stack.enter_context(open_container(path, limits))
            stream = video_stream(video_container, limits)
            if not isinstance(stream, str):  # a str only where the file was replaced meanwhile
                self._open_video(VideoTrack(video_container, stream, limits))
        else:
            self.info["video_missing"] = video
        if not isinstance(audio, str):
            self._open_audio(AudioTrack(container, audio, limits))
        else:
            self.info["audio_missing"] = audio
        if not (self.info["has_audio"] or self.info["has_video"]):
            raise empty_recording(self.info["audio_missing"], self.info["video_missing"])
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
        # Swapping the axes equals a clockwise quarter turn and a mirror; flipping top to bottom equals half a turn and
        # a mirror. So the three flags equal some quarter turns, and a mirror where an odd number of flags is set.
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
        """The header and the arrays of one span. Starts must not decrease from call to call."""
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
        if samples or end_s - start_s < MIN_SAMPLES / SAMPLE_RATE:
            missing["audio"] = "shorter than 25 ms"
        else:
            missing["audio"] = self._cut_off(self._audio, start_s) or "no audio in this span"
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
            missing["video"] = self._cut_off(self._video, start_s) or "no frames in this span"
        return pictures

    @staticmethod
    def _cut_off(track: AudioTrack | VideoTrack, start_s: float) -> str:
        """The reason of a span that is empty because the track's data ends before the end it states; "" otherwise."""
        ended_s, stated_s = track.end_s, stated_end_s(track.container, track.stream)
        if ended_s is None or stated_s is None or not ended_s + CUT_OFF_S < stated_s or not start_s < stated_s:
            return ""
        return f"damaged or cut off after {ended_s:.1f} s"

    def notes(self) -> list[str]:
        """Notes about the whole recording, complete once its spans have been read."""
        tracks = (("audio", self._audio), ("video", self._video))
        return [
            f"{track.damaged} damaged {name} packets were skipped" for name, track in tracks if track and track.damaged
        ]


def empty_recording(audio_missing: str, video_missing: str) -> MediaError:
    """The error for a container that can be opened and has neither usable audio nor usable video."""
    reasons = [reason for reason in (audio_missing, video_missing) if not reason.startswith("no ")]
    if not reasons:
        return MediaError("has neither an audio nor a video track")
    if any(reason.startswith("undecodable") for reason in reasons):
        return MediaError("has no track that can be decoded", hint="convert it to mp4 (H.264, AAC) or wav")
    return MediaError(f"has {' and '.join(reasons)}", hint="record it again: there is nothing inside to analyse")
