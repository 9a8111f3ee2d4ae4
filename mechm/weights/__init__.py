"""Base weights of the presets: where they come from, fetching and verifying them, and finding them on disk."""

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
