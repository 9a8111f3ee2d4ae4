"""Recordings in, samples and frames out: decoding in a process of its own, with caps on everything."""

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
