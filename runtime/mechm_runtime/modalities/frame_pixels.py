"""Make the scene encoder's input from a video frame: scaled, cropped to its middle or squeezed whole, normalised.

The cropped form agrees with transformers' image processor of facebook/dinov2-small in its pillow form
(BitImageProcessorPil); the squeezed form with torchvision's Resize, ToTensor and Normalize on a pillow image, as in
BLIP-2 and MiniGPT-v2.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mechm_runtime.bundle.config import SceneConfig
from mechm_runtime.errors import InputError
from mechm_runtime.system.arrays import Float32Array, UInt8Array
from mechm_runtime.system.pillow import load_pillow

DEFAULT = SceneConfig()


def clip_config(image_size: int) -> SceneConfig:
    """Preprocessing constants of OpenAI's CLIP, which EVA-CLIP shares."""
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return SceneConfig(image_size, image_size, mean, std)


def scene_pixels(frame: UInt8Array, config: SceneConfig = DEFAULT) -> Float32Array:
    """Scale a frame and crop its middle.

    frame: uint8 (height, width, 3), RGB.
    Returns: float32 (3, image_size, image_size), normalised.
    Raises: InputError: another shape or dtype; MissingExtraError: without the `media` extra.
    """
    check_frame(frame)
    image = load_pillow()
    height, width = frame.shape[:2]
    shorter, longer = min(height, width), max(height, width)
    scaled_longer = int(config.shortest_edge * longer / shorter)  # transformers cuts the fraction off, too
    size = (scaled_longer, config.shortest_edge) if width > height else (config.shortest_edge, scaled_longer)
    scaled = image.fromarray(frame).resize(size, resample=image.Resampling.BICUBIC)
    left, top = (size[0] - config.image_size) // 2, (size[1] - config.image_size) // 2
    square = scaled.crop((left, top, left + config.image_size, top + config.image_size))
    return _normalised(np.asarray(square, dtype=np.float32), config)


def squeezed_pixels(frame: UInt8Array, config: SceneConfig) -> Float32Array:
    """Squeeze a whole frame into a square; its proportions change.

    frame: uint8 (height, width, 3), RGB.
    Returns: float32 (3, image_size, image_size), normalised.
    Raises: InputError: another shape or dtype; MissingExtraError: without the `media` extra.
    """
    check_frame(frame)
    image = load_pillow()
    size = (config.image_size, config.image_size)
    square = image.fromarray(frame).resize(size, resample=image.Resampling.BICUBIC)
    return _normalised(np.asarray(square, dtype=np.float32), config)


def _normalised(square: Float32Array, config: SceneConfig) -> Float32Array:
    """float32 (height, width, 3) of 0 … 255 -> float32 (3, height, width)."""
    factor, shift = _normalisation(config)
    pixels: Float32Array = square * factor + shift
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def check_frame(frame: UInt8Array) -> None:
    """Refuse arrays that are no RGB frame.

    Raises: InputError.
    """
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or 0 in frame.shape:
        raise InputError(
            f"a frame of shape {frame.shape} and type {frame.dtype}, where uint8 (height, width, 3) is expected"
        )


@lru_cache(maxsize=8)
def _normalisation(config: SceneConfig) -> tuple[Float32Array, Float32Array]:
    """Factor and shift, float32 (3,), that turn 0 … 255 into normalised values."""
    std = np.asarray(config.std)
    return (1.0 / (255.0 * std)).astype(np.float32), (-np.asarray(config.mean) / std).astype(np.float32)
