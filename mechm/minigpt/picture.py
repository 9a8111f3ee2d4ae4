"""Extracts the picture of a recording for MiniGPT-v2: the first frame, resized to a square without cropping."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from mechm_runtime.errors import InputError, MediaError
from mechm_runtime.media import MediaLimits, read_segments
from mechm_runtime.modalities.frame_pixels import clip_config, squeezed_pixels

OWN_SIZE = MediaLimits(max_side=8192)

FIRST_S = 1e-3
"""Shorter than the time between two frames of any recording."""


def first_frame_pixels(path: Path, image_size: int, limits: MediaLimits | None = None) -> npt.NDArray[np.float32]:
    """Return the pixels of a picture or of a recording's first frame.

    limits: for decoding; None for the defaults, with frames in their original size, from which the original scales.
    Returns: float32 (3, image_size, image_size), CLIP-normalised RGB.
    Raises: MediaError: not readable, or without a frame. MissingExtraError: without the `media` extra.
    """
    (segment,) = read_segments(path, [(0.0, FIRST_S)], n_frames=1, limits=limits or OWN_SIZE).segments
    if segment.frames is None or not len(segment.frames):
        raise MediaError(f"{path.name} shows nothing: {segment.missing.get('video', 'it has no frame')}")
    return squeezed_pixels(segment.frames[0], clip_config(image_size))


def read_features(path: Path) -> npt.NDArray[np.float32]:
    """Read Emotion-LLaMA's features from a numpy file, float32 (3, feature_size).

    Raises: InputError: it is not such a file, or has values that are not finite.
    """
    try:
        features = np.load(path, allow_pickle=False)
        made: npt.NDArray[np.float32] = np.asarray(features, np.float32)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is no numpy file of numbers: {error}") from error
    if made.ndim != 2 or not np.isfinite(made).all():
        raise InputError(f"{path} holds {made.shape}, or what is not finite, where (3, feature_size) is expected")
    return made
