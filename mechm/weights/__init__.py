"""Base weights: which ones a preset needs, fetching and verifying them, and where they lie."""

from __future__ import annotations

from mechm.weights.fetch import Source, check_hashes, fetch_weights, list_weights, weights_path
from mechm.weights.parts import PRESETS, Part, part_of, parts_of
from mechm.weights.progress import Progress, show_progress

__all__ = [
    "PRESETS",
    "Part",
    "Progress",
    "Source",
    "check_hashes",
    "fetch_weights",
    "list_weights",
    "part_of",
    "parts_of",
    "show_progress",
    "weights_path",
]
