"""Decode recordings to audio samples and video frames, in a separate process with limits on every resource."""

from mechm_runtime.media.limits import MediaLimits
from mechm_runtime.media.reader import MediaReader, probe, read_segments
from mechm_runtime.media.segments import MAX_SIDE, SAMPLE_RATE, MediaInfo, MediaSegments, Segment

__all__ = [
    "MAX_SIDE",
    "SAMPLE_RATE",
    "MediaInfo",
    "MediaLimits",
    "MediaReader",
    "MediaSegments",
    "Segment",
    "probe",
    "read_segments",
]
