"""Recordings in, samples and frames out: decoding in a process of its own, with caps on everything.

The public names are loaded on first use, so that the decoding process, which imports this package on its way to
`worker`, starts without numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechm_runtime.media.limits import MediaLimits
    from mechm_runtime.media.reader import MediaReader, probe, read_segments
    from mechm_runtime.media.segments import MAX_SIDE, SAMPLE_RATE, MediaInfo, MediaSegments, Segment

_HOMES = {
    "MAX_SIDE": "segments",
    "SAMPLE_RATE": "segments",
    "MediaInfo": "segments",
    "MediaLimits": "limits",
    "MediaReader": "reader",
    "MediaSegments": "segments",
    "Segment": "segments",
    "probe": "reader",
    "read_segments": "reader",
}

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
