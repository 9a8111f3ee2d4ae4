"""Check and convert the replies of the decoding process.

The process decodes data that may be hostile, so its replies are not trusted: shapes are compared with the request
before memory is allocated, samples are checked for finiteness, and text is cut and made printable.
"""

from __future__ import annotations

import math
from io import BufferedIOBase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mechm_runtime.media.protocol import ArraySpec, ProtocolError, array_spec, read_exactly
from mechm_runtime.media.segments import SAMPLE_RATE, MediaInfo, Segment

MAX_TEXT_CHARACTERS = 300


def read_segment(
    stream: BufferedIOBase, header: dict[str, Any], span: tuple[float, float], n_frames: int, max_side: int
) -> Segment:
    """Read the arrays of one segment from the stream, right behind its header.

    span: start and end in seconds, as requested. n_frames: frames requested per span.
    max_side: largest height and width of a frame in pixels.
    Raises: ProtocolError: other arrays than requested, or larger ones.
    """
    start_s, end_s = span
    listed = header.get("arrays")
    reasons = header.get("missing")
    if not isinstance(listed, list) or not isinstance(reasons, dict):
        raise ProtocolError("a segment without arrays or reasons")
    missing = {key: printable_line(reasons[key]) for key in ("audio", "video") if key in reasons}
    expected = [key for key in ("samples", "frames") if header.get(key) is True]
    if len(listed) != len(expected):
        raise ProtocolError("a segment whose number of arrays differs from its header")
    arrays: dict[str, NDArray[Any]] = {}
    for key, entry in zip(expected, listed, strict=True):
        if key == "samples":
            most = (math.ceil((end_s - start_s) * SAMPLE_RATE) + 1,)
            spec = array_spec(entry, dtype="float32", max_shape=most)
        else:
            spec = array_spec(entry, dtype="uint8", max_shape=(n_frames, max_side, max_side, 3))
        arrays[key] = _read_array(stream, spec)
    samples = arrays.get("samples")
    if samples is not None and not np.isfinite(samples).all():
        samples, missing["audio"] = None, "its samples are not numbers"
    if samples is not None:
        np.clip(samples, -1.0, 1.0, out=samples)
    frames = arrays.get("frames")
    if frames is not None:
        if frames.shape[-1] != 3:
            raise ProtocolError("frames without three colours")
        frames = _oriented(frames, header.get("turn", [False, False, False]))
    return Segment(start_s, end_s, samples, frames, missing)


def parse_index(header: dict[str, Any], waiting: set[int]) -> int:
    """The index of the span that a segment belongs to.

    waiting: indices of the spans that have no segment yet.
    Raises: ProtocolError: the index is not one of them.
    """
    index = header.get("index")
    if not isinstance(index, int) or index not in waiting:
        raise ProtocolError("a segment that was not requested")
    return index


def parse_info(sent: object) -> MediaInfo:
    """The facts of a recording.

    Raises: ProtocolError: a field of another type than `MediaInfo` has.
    """
    if not isinstance(sent, dict):
        raise ProtocolError("facts that are not an object")

    def number(key: str) -> float | None:
        value = sent.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ProtocolError(f"a fact {key} that is not a number")
        return float(value)

    def whole(key: str) -> int | None:
        value = number(key)
        return None if value is None else int(value)

    def text(key: str) -> str | None:
        return None if sent.get(key) is None else printable_line(sent[key])

    return MediaInfo(
        container=text("container") or "",
        duration_s=number("duration_s"),
        has_audio=sent.get("has_audio") is True,
        has_video=sent.get("has_video") is True,
        audio_missing=text("audio_missing") or "",
        video_missing=text("video_missing") or "",
        audio_codec=text("audio_codec"),
        sample_rate=whole("sample_rate"),
        channels=whole("channels"),
        video_codec=text("video_codec"),
        width=whole("width"),
        height=whole("height"),
        rotation_degrees=whole("rotation_degrees") or 0,
        mirrored=sent.get("mirrored") is True,
    )


def parse_notes(sent: object) -> list[str]:
    """Notes about a recording, each one printable line; none where no list was sent."""
    return [printable_line(note) for note in sent] if isinstance(sent, list) else []


def printable_line(sent: object) -> str:
    """One printable line of at most `MAX_TEXT_CHARACTERS`, from any value."""
    return "".join(character if character.isprintable() else "?" for character in str(sent)[:MAX_TEXT_CHARACTERS])


def _read_array(stream: BufferedIOBase, spec: ArraySpec) -> NDArray[Any]:
    array = np.empty(spec.shape, dtype=np.dtype(spec.dtype).newbyteorder("<"))
    read_exactly(stream, array.data.cast("B"))
    return array.astype(spec.dtype, copy=False)


def _oriented(frames: NDArray[np.uint8], turn: object) -> NDArray[np.uint8]:
    """Frames (n, height, width, 3) turned upright: axes swapped first, then mirrored.

    turn: [transpose, flip_x, flip_y].
    Raises: ProtocolError: `turn` is not three flags.
    """
    if not isinstance(turn, list) or len(turn) != 3 or not all(isinstance(flag, bool) for flag in turn):
        raise ProtocolError("a turn that is not three flags")
    transpose, flip_x, flip_y = turn
    if transpose:
        frames = frames.swapaxes(1, 2)
    if flip_x:
        frames = frames[:, :, ::-1]
    if flip_y:
        frames = frames[:, ::-1]
    return np.ascontiguousarray(frames)
