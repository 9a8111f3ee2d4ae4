"""A frame becomes the pixels that the scene encoder was trained on."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mechm_runtime.bundle.config import SceneConfig
from mechm_runtime.errors import InputError
from mechm_runtime.modalities.frame_pixels import scene_pixels


def stripes(height: int, width: int) -> NDArray[np.uint8]:
    ramp: NDArray[np.uint8] = (np.indices((height, width)).sum(axis=0)[..., None] * [1, 2, 3] % 256).astype(np.uint8)
    return ramp


PINNED = [[-1.00479, -0.97055, -0.95342], [0.25770, 0.29272, 0.34524], [1.61168, 1.68139, 1.73368]]
"""Values of `stripes(300, 400)`, equal to transformers 5.19's within 1e-5."""


@pytest.mark.parametrize(
    ("height", "width"), [(360, 640), (640, 360), (144, 193), (256, 256), (301, 303), (60, 640), (17, 16)]
)
@pytest.mark.parametrize("pattern", ["stripes", "noise"])
def test_equals_the_processor_of_transformers(height: int, width: int, pattern: str) -> None:
    pytest.importorskip("transformers")
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    frame = stripes(height, width)
    if pattern == "noise":
        frame = np.random.default_rng(2).integers(0, 256, frame.shape, dtype=np.uint8)
    processor = BitImageProcessorPil(  # preprocessor_config.json of facebook/dinov2-small
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        resample=3,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )

    pixels = scene_pixels(frame)

    assert pixels.dtype == np.float32
    assert pixels.shape == (3, 224, 224)
    assert np.abs(pixels - processor(frame, return_tensors="np")["pixel_values"][0]).max() < 1e-4


def test_first_values_without_transformers() -> None:
    pixels = scene_pixels(stripes(300, 400))
    np.testing.assert_allclose(pixels[:, 100, 100:103], PINNED, atol=1e-4)


def test_colours_stay_in_their_channels() -> None:
    frame = np.zeros((300, 500, 3), np.uint8)
    frame[..., 0] = 255
    red, green, blue = scene_pixels(frame).reshape(3, -1).mean(axis=1)
    assert (red, green, blue) == pytest.approx(((1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225), abs=1e-5)


def test_the_middle_is_what_is_kept() -> None:
    frame = np.zeros((256, 512, 3), np.uint8)
    frame[:, 144:368] = 255  # the 224 columns in the middle
    assert scene_pixels(frame).min() > 0


@pytest.mark.parametrize(
    "frame",
    [np.zeros((5, 5), np.uint8), np.zeros((5, 5, 4), np.uint8), np.zeros((5, 5, 3)), np.zeros((0, 5, 3), np.uint8)],
)
def test_what_is_not_a_frame_is_refused(frame: NDArray[np.uint8]) -> None:
    with pytest.raises(InputError, match="where uint8"):
        scene_pixels(frame)


def test_constants_are_checked() -> None:
    with pytest.raises(InputError):
        SceneConfig(shortest_edge=200, image_size=224)
    with pytest.raises(InputError):
        SceneConfig(std=(0.2, 0.0, 0.2))
