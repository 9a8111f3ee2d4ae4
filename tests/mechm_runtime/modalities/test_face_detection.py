"""Faces are found, in order, and cut out as the expression network wants them."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from mechm_runtime.bundle.config import FaceConfig
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.engines.base import EngineConfig, GraphRunner
from mechm_runtime.engines.load import load_engine
from mechm_runtime.errors import InputError, MissingExtraError
from mechm_runtime.media import read_segments
from mechm_runtime.modalities.face_detection import (
    Face,
    FaceDetector,
    detector_pixels,
    face_pixels,
    non_max_suppression,
)

Frame = NDArray[np.uint8]


@pytest.fixture(scope="module")
def detector(tiny_bundle: Path) -> GraphRunner:
    """The published weights: there is no random form."""
    bundle = open_bundle(tiny_bundle, check_hashes=False)
    return load_engine(bundle.path(bundle.parts["detector"].files["fp32"]), EngineConfig(n_threads=1))


@pytest.fixture(scope="module")
def finder(detector: GraphRunner) -> FaceDetector:
    return FaceDetector(detector)


def wall(height: int = 360, width: int = 640) -> Frame:
    return np.full((height, width, 3), (120, 140, 150), np.uint8)


def draw_face(frame: Frame, left: int, top: int, size: int) -> None:
    """Draw a face of about `size` pixels into the frame."""
    scale = 4  # pillow draws without smoothing: large, then scaled down
    image = Image.fromarray(frame).resize((scale * frame.shape[1], scale * frame.shape[0]))
    draw = ImageDraw.Draw(image)

    def at(x: float, y: float) -> tuple[float, float]:
        return scale * (left + x * size), scale * (top + y * size)

    def ellipse(x: float, y: float, rx: float, ry: float, colour: tuple[int, int, int], first: int = 0) -> None:
        draw.pieslice((*at(x - rx, y - ry), *at(x + rx, y + ry)), first, 360, fill=colour)

    skin, hair, lips = (205, 160, 130), (60, 40, 30), (170, 60, 60)
    ellipse(0.5, 0.5, 0.36, 0.48, skin)
    ellipse(0.5, 0.2, 0.38, 0.26, hair, first=180)
    for x in (0.36, 0.64):
        ellipse(x, 0.45, 0.07, 0.035, (250, 250, 250))
        ellipse(x, 0.45, 0.033, 0.033, hair)
        ellipse(x, 0.38, 0.09, 0.02, hair)
    width = scale * max(2, size // 60)
    draw.line((*at(0.5, 0.47), *at(0.48, 0.62)), (170, 120, 95), width)
    draw.line((*at(0.48, 0.62), *at(0.53, 0.63)), (150, 100, 80), width)
    ellipse(0.5, 0.74, 0.13, 0.045, lips)
    small = image.resize((frame.shape[1], frame.shape[0]), Image.Resampling.BOX)
    frame[:] = np.asarray(small.filter(ImageFilter.GaussianBlur(0.8)))


def overlap(face: Face, box: tuple[int, int, int, int]) -> float:
    """Intersection over union of two boxes."""
    (a, b, c, d), (e, f, g, h) = face.box_px, box
    width, height = min(a + c, e + g) - max(a, e), min(b + d, f + h) - max(b, f)
    both = max(0, width) * max(0, height)
    return both / (c * d + g * h - both)


def test_faces_are_found_largest_first_and_inside_the_frame(finder: FaceDetector) -> None:
    frame = wall()
    drawn = [(40, 120, 110), (180, 60, 200), (440, 90, 150)]
    for left, top, size in drawn:
        draw_face(frame, left, top, size)

    found = finder.detect(frame)

    assert len(found) == 3
    for face, (left, top, size) in zip(found, (drawn[1], drawn[2], drawn[0]), strict=True):
        head = (round(left + 0.14 * size), round(top + 0.1 * size), round(0.72 * size), round(0.88 * size))
        assert overlap(face, head) > 0.6
        assert 0.75 <= face.score <= 1.0
        left_px, top_px, width_px, height_px = face.box_px
        assert min(left_px, top_px) >= 0
        assert left_px + width_px <= 640
        assert top_px + height_px <= 360


def test_a_larger_frame_has_its_faces_at_the_same_places(finder: FaceDetector) -> None:
    frame = wall()
    draw_face(frame, 200, 60, 200)
    (small,) = finder.detect(frame)
    (large,) = finder.detect(np.repeat(np.repeat(frame, 3, axis=0), 3, axis=1))
    assert overlap(small, tuple(round(side / 3) for side in large.box_px)) > 0.85  # type: ignore[arg-type]


def test_no_more_than_asked_for_and_none_too_small(detector: GraphRunner) -> None:
    frame = wall()
    for i, size in enumerate((130, 120, 110, 100, 90)):
        draw_face(frame, 10 + 125 * i, 100, size)
    all_five = FaceDetector(detector, FaceConfig(max_faces=9, min_score=0.6)).detect(frame)
    assert len(all_five) == 5
    assert FaceDetector(detector, FaceConfig(max_faces=2, min_score=0.6)).detect(frame) == all_five[:2]
    smallest_px = min(min(face.box_px[2:]) for face in all_five)
    larger = FaceDetector(detector, FaceConfig(max_faces=9, min_score=0.6, min_side_px=smallest_px + 1))
    assert len(larger.detect(frame)) < 5


def test_where_nobody_is_nobody_is_found(finder: FaceDetector) -> None:
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (360, 640, 3), dtype=np.uint8)
    blurred = np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(8)))
    for frame in (wall(), np.zeros((360, 640, 3), np.uint8), noise, blurred, wall(4, 640)):
        assert finder.detect(frame) == []


def test_threads_find_the_same(finder: FaceDetector) -> None:
    frames = []
    for i in range(16):
        frame = wall(240 + 10 * i, 320 + 15 * i)
        draw_face(frame, 20 + i, 10 + i, 150)
        frames.append(frame)
    one_by_one = [finder.detect(frame) for frame in frames]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(finder.detect, frames)) == one_by_one
    assert all(len(found) == 1 for found in one_by_one)


def test_every_face_of_real_pictures(finder: FaceDetector, mechm_data: Path) -> None:
    three = read_segments(mechm_data / "media" / "faces_1.jpg", [(0.0, 0.0)]).segments[0].frames
    four = read_segments(mechm_data / "media" / "faces_4.jpg", [(0.0, 0.0)]).segments[0].frames
    man = read_segments(mechm_data / "media" / "carphone_no_audio.mp4", [(0.0, 4.0)], n_frames=24).segments[0].frames
    assert three is not None
    assert four is not None
    assert man is not None
    # Boxes drawn on the pictures and looked at; 640 pixels wide.
    for frame, expected in (
        (three[0], [(139, 118, 60, 80), (276, 139, 70, 80), (492, 68, 70, 77)]),
        (four[0], [(83, 64, 60, 88), (218, 22, 64, 81), (326, 61, 63, 81), (420, 52, 61, 81)]),
    ):
        found = finder.detect(frame)
        assert len(found) == len(expected)
        assert all(max(overlap(face, box) for face in found) > 0.7 for box in expected)
    assert [len(finder.detect(frame)) for frame in man] == [1] * len(man)


def test_a_cut_out_face_is_square_grey_and_scaled() -> None:
    frame = np.zeros((200, 300, 3), np.uint8)
    frame[60:140, 100:150] = (255, 255, 255)  # 50 x 80: squared to 80 columns around the middle, 96 with its margin
    pixels = face_pixels(frame, (100, 60, 50, 80))
    assert pixels.shape == (1, 64, 64)
    assert pixels.dtype == np.float32
    assert (pixels.min(), pixels.max()) == (-1.0, 1.0)
    white = pixels[0] > 0
    assert white[32].sum() == pytest.approx(50 / 96 * 64, abs=1)
    assert white[:, 32].sum() == pytest.approx(80 / 96 * 64, abs=1)
    np.testing.assert_array_equal(white, white[::-1, ::-1])


def test_grey_values_follow_the_network() -> None:
    frame = np.full((100, 100, 3), (200, 100, 50), np.uint8)
    grey = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert face_pixels(frame, (20, 20, 60, 60)) == pytest.approx((grey / 255 - 0.5) * 2, abs=1e-6)


def test_a_face_at_the_edge_repeats_the_edge() -> None:
    frame = np.full((100, 100, 3), 180, np.uint8)
    assert face_pixels(frame, (-30, -30, 60, 60)) == pytest.approx((180 / 255 - 0.5) * 2, abs=1e-6)
    for box in ((100, 0, 10, 10), (0, 0, 0, 10), (-20, 0, 10, 10)):
        with pytest.raises(InputError, match="outside"):
            face_pixels(frame, box)


@pytest.mark.parametrize(
    "constants", [{"max_faces": 0}, {"min_score": 1.5}, {"overlap": 0.0}, {"detection_side": 10}, {"margin": -0.1}]
)
def test_constants_are_checked(constants: dict[str, int]) -> None:
    with pytest.raises(InputError):
        FaceConfig(**constants)


def test_of_boxes_that_overlap_the_first_stays() -> None:
    boxes = np.array([(0, 0, 10, 10), (1, 0, 10, 10), (20, 0, 10, 10), (5, 0, 10, 10), (27, 0, 10, 10)], float)
    assert non_max_suppression(boxes, 0.3) == [0, 2, 4]
    assert non_max_suppression(boxes, 0.35) == [0, 2, 3, 4], "a third of both is covered"
    assert non_max_suppression(boxes[:0], 0.3) == []
    assert non_max_suppression(np.zeros((2, 4)), 0.3) == [0, 1], "no area covers nothing"


def test_what_the_detector_is_given() -> None:
    frame = np.arange(40 * 70 * 3, dtype=np.uint32).reshape(40, 70, 3).astype(np.uint8)
    pixels = detector_pixels(frame, (70, 40))
    assert (pixels.shape, pixels.dtype) == ((1, 3, 64, 96), np.float32)
    np.testing.assert_array_equal(pixels[0, :, :40, :70], frame.transpose(2, 0, 1))
    assert not pixels[0, :, 40:].any()
    assert not pixels[0, :, :, 70:].any()
    assert detector_pixels(wall(), (480, 270)).shape == (1, 3, 288, 480)


def test_without_the_extra_it_says_what_to_install(finder: FaceDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingExtraError) as caught:
        finder.detect(wall())
    assert caught.value.extra == "media"
