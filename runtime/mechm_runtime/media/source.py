"""Opens one local file as media, inside the decoding process, and refuses files that are not accepted.

Only a regular file is opened, and FFmpeg gets its bytes and never its name, so that no demuxer can follow a name in the
data to another file or host. Demuxers and decoders come from lists of formats in which people are recorded; playlists
(HLS, DASH, concat), image sequences, subtitles and game formats are refused by design. Nothing is decoded here except
what FFmpeg needs to find a stream's parameters.

Runs inside `worker`, which has av; never imported by the reader.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from mechm_runtime.errors import MediaError
from mechm_runtime.media.limits import MediaLimits

DEMUXERS = (
    *("aac", "ac3", "aiff", "amr", "amrnb", "amrwb", "asf", "au", "avi", "caf", "dv", "eac3", "flac", "flv", "gif"),
    *("ivf", "matroska", "mov", "mp3", "mpeg", "mpegts", "mxf", "nistsphere", "ogg", "tta", "w64", "wav", "wv"),
)
AUDIO_CODECS = frozenset(
    (
        *("aac", "aac_latm", "ac3", "adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms", "alac", "amr_nb", "amr_wb", "ape"),
        *("dts", "eac3", "flac", "g723_1", "g726", "g729", "gsm", "gsm_ms", "mp1", "mp2", "mp3", "opus", "speex"),
        *("pcm_alaw", "pcm_f32be", "pcm_f32le", "pcm_f64be", "pcm_f64le", "pcm_mulaw", "pcm_s16be", "pcm_s16le"),
        *("pcm_s24be", "pcm_s24le", "pcm_s32be", "pcm_s32le", "pcm_s8", "pcm_u8", "truehd", "tta", "vorbis"),
        *("wavpack", "wmapro", "wmav1", "wmav2"),
    )
)
VIDEO_CODECS = frozenset(
    (
        *("av1", "dnxhd", "dvvideo", "ffv1", "flv1", "gif", "h263", "h264", "hevc", "huffyuv", "mjpeg", "mpeg1video"),
        *("mpeg2video", "mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "prores", "rawvideo", "theora", "vc1", "vp8"),
        *("vp9", "wmv1", "wmv2", "wmv3"),
    )
)
GUESSED_DURATION = frozenset(("aac", "ac3", "amr", "amrnb", "amrwb", "eac3", "ivf", "mp3"))
"""Formats without an index, whose duration FFmpeg extrapolates from the first packets' bit rate."""

MAX_START_S = 0.1
"""Largest time stamp of Matroska's first packet in seconds that counts as a codec's delay."""

MAX_STREAMS = 64
IMAGE_SIGNATURES = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "BMP": b"BM"}
ACCEPTED = "use a recording (mp4, mov, mkv, webm, avi, wav, mp3, m4a, flac, ogg, …) or a picture (jpg, png, webp, bmp)"


def open_regular(path: str, limits: MediaLimits) -> BinaryIO:
    """Open a regular file for reading; a FIFO, socket or device is refused without waiting for it.

    Raises: MediaError: missing, not allowed to read, not a regular file, empty or above `max_bytes`.
    """
    flags = os.O_RDONLY
    for name in ("O_BINARY", "O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY"):  # not every system has all of these
        flags |= getattr(os, name, 0)
    try:
        check_regular(Path(path).stat(), limits)
        descriptor = os.open(path, flags)
    except OSError as error:
        raise unreadable(error) from error
    file = os.fdopen(descriptor, "rb")
    try:
        check_regular(os.fstat(file.fileno()), limits)  # the name may point to another file by now
    except MediaError:
        file.close()
        raise
    return file


def check_regular(status: os.stat_result, limits: MediaLimits) -> None:
    """Refuse anything but a regular file that is neither empty nor too large.

    Raises: MediaError: it is not one.
    """
    if stat.S_ISDIR(status.st_mode):
        raise MediaError("is a folder, not a recording", hint=ACCEPTED)
    if not stat.S_ISREG(status.st_mode):
        raise MediaError("is not a regular file", hint="save the recording to a file first")
    if status.st_size == 0:
        raise MediaError("is empty", hint=ACCEPTED)
    if status.st_size > limits.max_bytes:
        raise MediaError(
            f"has {status.st_size:,} bytes, above the limit of {limits.max_bytes:,}",
            hint="cut the recording, or raise MediaLimits.max_bytes",
        )


def unreadable(error: OSError) -> MediaError:
    """The error for a path that the system will not open."""
    if isinstance(error, FileNotFoundError):
        return MediaError("does not exist", hint="check the path")
    if isinstance(error, PermissionError):
        return MediaError("may not be read", hint="check the file's permissions")
    return MediaError(f"cannot be opened ({os.strerror(error.errno) if error.errno else type(error).__name__})")


def image_format(file: BinaryIO) -> str | None:
    """Pillow's name of the picture format by the file's first bytes; None where it is no picture."""
    file.seek(0)
    head = file.read(16)
    file.seek(0)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return next((name for name, signature in IMAGE_SIGNATURES.items() if head.startswith(signature)), None)


@contextmanager
def open_container(path: str, limits: MediaLimits) -> Iterator[InputContainer]:
    """Open a regular file as a container of one of the `DEMUXERS`, and close it afterwards.

    Raises: MediaError: see `open_regular`; not media, a format that is not read, an mp4 without its index, or
        longer than `max_duration_s`.
    """
    with open_regular(path, limits) as file:
        options = {
            "protocol_whitelist": "pipe",
            "format_whitelist": ",".join(DEMUXERS),
            "max_streams": str(MAX_STREAMS),
        }
        try:
            container = av.open(file, mode="r", buffer_size=1 << 16, container_options=options)
        except MemoryError:
            raise
        except (av.FFmpegError, ValueError) as error:
            raise not_media(file) from error
        with container:
            duration_s = stated_duration_s(container)
            if duration_s is not None and duration_s > limits.max_duration_s:
                raise too_long(duration_s, limits)
            yield container


def not_media(file: BinaryIO) -> MediaError:
    """The error for a file that FFmpeg does not open as one of `DEMUXERS`; names an mp4 without its index."""
    file.seek(0)
    if file.read(8)[4:] in (b"ftyp", b"mdat", b"free", b"wide") and not has_index(file):
        return MediaError(
            "is an mp4 that was cut off: its index (moov) is missing",
            hint="copy or record the file again, to its end",
        )
    return MediaError("is not media that can be read", hint=ACCEPTED)


def has_index(file: BinaryIO) -> bool:
    """Whether an mp4's top-level boxes include a complete `moov`."""
    size = file.seek(0, os.SEEK_END)
    position = 0
    while position + 8 <= size:
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1 and position + 16 <= size:
            (length,) = struct.unpack(">Q", file.read(8))
        if length < 8:  # 0 means up to the end of the file, 2 to 7 are impossible
            return False
        if kind == b"moov":
            return position + int(length) <= size
        position += int(length)
    return False


def stated_duration_s(container: InputContainer) -> float | None:
    """The duration that the container states, in seconds; None where it states none or FFmpeg guesses it.

    Matroska's counts from time stamp 0 in some writers and from the first packet in others; where that makes a
    difference it is not used.
    """
    if container.duration is None or container.duration <= 0 or container.format.name in GUESSED_DURATION:
        return None
    if container.format.name == "matroska,webm" and start_s(container) > MAX_START_S:
        return None
    return container.duration / av.time_base


def start_s(container: InputContainer) -> float:
    """The container's time stamp in seconds at which the recording's time is 0."""
    return 0.0 if container.start_time is None else container.start_time / av.time_base


def stated_end_s(container: InputContainer, stream: AudioStream | VideoStream) -> float | None:
    """The end of a track by its own header, in seconds from the recording's start; None where it is not stated."""
    if stream.duration is None or stream.time_base is None or container.format.name in GUESSED_DURATION:
        return None
    return float(((stream.start_time or 0) + stream.duration) * stream.time_base) - start_s(container)


def measured_duration_s(path: str, limits: MediaLimits) -> float | None:
    """Seconds at which the last packet ends, by reading all packets and decoding none; None without time stamps.

    Raises: MediaError: longer than `max_duration_s`.
    """
    with open_container(path, limits) as container:
        zero_s = start_s(container)
        end_s: float | None = None
        try:
            for packet in container.demux():
                if packet.pts is not None and packet.stream.type in ("audio", "video"):
                    packet_end_s = float((packet.pts + (packet.duration or 0)) * packet.time_base) - zero_s
                    end_s = packet_end_s if end_s is None else max(end_s, packet_end_s)
                    if end_s > limits.max_duration_s:
                        raise too_long(end_s, limits)
        except av.FFmpegError:
            pass  # damaged towards its end: the recording ends where reading failed
        return end_s


def too_long(duration_s: float, limits: MediaLimits) -> MediaError:
    """The error for a recording above `max_duration_s`."""
    return MediaError(
        f"lasts {duration_s:,.0f} s, above the limit of {limits.max_duration_s:,.0f} s",
        hint="cut the recording, or raise MediaLimits.max_duration_s",
    )


def audio_stream(container: InputContainer, limits: MediaLimits) -> AudioStream | str:
    """The audio track to read, or the reason why there is none.

    Raises: MediaError: its rate or its channels are above the limits.
    """
    stream = container.streams.best("audio")
    if not isinstance(stream, AudioStream):
        return "no audio track"
    context = stream.codec_context
    if context is None or not stream.time_base or context.codec.canonical_name not in AUDIO_CODECS:
        return "undecodable: an audio format that is not read"
    if context.sample_rate > limits.max_sample_rate:
        raise MediaError(
            f"has {context.sample_rate:,} audio samples per second, above the limit of {limits.max_sample_rate:,}",
            hint="resample the recording, or raise MediaLimits.max_sample_rate",
        )
    if context.layout.nb_channels > limits.max_channels:
        raise MediaError(
            f"has {context.layout.nb_channels} audio channels, above the limit of {limits.max_channels}",
            hint="mix the recording down, or raise MediaLimits.max_channels",
        )
    context.thread_count = 1
    return stream


def video_stream(container: InputContainer, limits: MediaLimits) -> VideoStream | str:
    """The video track to read, or the reason why there is none; a cover picture in a music file is no video.

    Raises: MediaError: its frames are above the limit.
    """
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
        return "no video track"
    context = stream.codec_context
    if context is None or not stream.time_base or context.codec.canonical_name not in VIDEO_CODECS:
        return "undecodable: a video format that is not read"
    check_pixels(context.width, context.height, limits)
    # The decoder checks this limit for every frame before it allocates: the size may change within a stream.
    context.options = {"max_pixels": str(limits.max_pixels)}
    context.thread_count = 1
    return stream


def select_only(container: InputContainer, stream: AudioStream | VideoStream) -> None:
    """Make the demuxer skip every other track, so that the video is not read for its audio."""
    for other in container.streams:
        other.discard = Discard.default if other.index == stream.index else Discard.all


def check_pixels(width: int, height: int, limits: MediaLimits) -> None:
    """Refuse a frame above `max_pixels`.

    Raises: MediaError: it is above it.
    """
    if width * height > limits.max_pixels:
        raise MediaError(
            f"has frames of {width} x {height} pixels, above the limit of {limits.max_pixels:,} pixels",
            hint="scale the recording down, or raise MediaLimits.max_pixels",
        )
