"""Limits on recordings, which may be hostile or broken; they are checked before anything is decoded.

This module holds the numbers. `worker`, `recording`, `source`, `audio` and `video` enforce them inside the decoding
process, `reader` and `exchange` outside of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from mechm_runtime.errors import InputError
from mechm_runtime.media.segments import MAX_SIDE

GIB = 1 << 30

MIN_MEMORY_BYTES = 256 << 20
"""The decoding process takes 120 MiB of address space before its first recording, and Pillow some more."""


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """Limits for one recording. A recording above one of them is refused with a `MediaError` that names the limit.

    max_bytes: size of the file.
    max_pixels: width times height of one frame, before scaling; the default lets 8K through.
    max_side: pixels of a frame's longer side; larger frames are scaled down to it and not refused.
    max_duration_s: length of the recording and end of its last requested span.
    max_sample_rate: samples per second and channel.
    max_channels: channels of the audio track.
    max_frames: video frames decoded in one call, including those between the requested ones.
    max_spans: spans in one call.
    max_result_bytes: samples and frames that `read_segments` may hold at once; `iter_segments` holds one segment.
    timeout_s: seconds spent waiting for the decoder in one call, after which its process is killed.
    memory_bytes: address space of the decoding process (where the system can limit it), at least `MIN_MEMORY_BYTES`.

    Raises: InputError: a limit that is not a finite number above zero, or too little memory.
    """

    max_bytes: int = 16 * GIB
    max_pixels: int = 36_000_000
    max_side: int = MAX_SIDE
    max_duration_s: float = 8 * 3600.0
    max_sample_rate: int = 192_000
    max_channels: int = 16
    max_frames: int = 1_000_000
    max_spans: int = 20_000
    max_result_bytes: int = 4 * GIB
    timeout_s: float = 900.0
    memory_bytes: int = 2 * GIB

    def __post_init__(self) -> None:
        for name, value in self.to_dict().items():
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"MediaLimits.{name} is {value}, but a limit is a finite number above zero")
        if self.memory_bytes < MIN_MEMORY_BYTES:
            raise InputError(
                f"MediaLimits.memory_bytes is {self.memory_bytes:,}, but it takes {MIN_MEMORY_BYTES:,} to start"
            )

    def to_dict(self) -> dict[str, int | float]:
        """The limits by name, as plain JSON numbers."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, int | float]) -> MediaLimits:
        """Limits from the result of `to_dict`.

        Raises: InputError: a value out of range.
        """
        numbers = dict(values)
        return cls(
            max_bytes=int(numbers["max_bytes"]),
            max_pixels=int(numbers["max_pixels"]),
            max_side=int(numbers["max_side"]),
            max_duration_s=float(numbers["max_duration_s"]),
            max_sample_rate=int(numbers["max_sample_rate"]),
            max_channels=int(numbers["max_channels"]),
            max_frames=int(numbers["max_frames"]),
            max_spans=int(numbers["max_spans"]),
            max_result_bytes=int(numbers["max_result_bytes"]),
            timeout_s=float(numbers["timeout_s"]),
            memory_bytes=int(numbers["memory_bytes"]),
        )
