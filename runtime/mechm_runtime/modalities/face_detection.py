"""Face detection in video frames, and the pixels of a face for the expression network.

Faces are detected by YuNet (W. Wu, H. Peng, S. Yu, "YuNet: A Tiny Millisecond-level Face Detector", 2023), a part of
the bundle like the encoders. No person is recognised, and no face is tracked over time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mechm_runtime.bundle.config import SIDE_MULTIPLE, FaceConfig
from mechm_runtime.errors import InputError
from mechm_runtime.modalities.frame_pixels import check_frame
from mechm_runtime.system.arrays import Float32Array, Float64Array, FloatArray, UInt8Array
from mechm_runtime.system.pillow import load_pillow

if TYPE_CHECKING:
    from mechm_runtime.engines.base import GraphRunner

FACE_SIZE = 64
"""Side of the expression network's input in pixels (fer 25.10.3, emotion_model.hdf5)."""

N_CANDIDATES = 200
"""Detections of a frame that are considered, the most confident first."""


DEFAULT = FaceConfig()


@dataclass(frozen=True, slots=True)
class Face:
    """One detected face.

    box_px: left, top, width, height in pixels of the frame, inside of it.
    score: the detector's confidence in [0, 1].
    """

    box_px: tuple[int, int, int, int]
    score: float


class FaceDetector:
    """Detects faces in frames. Thread-safe.

    engine: runs the detector: `pixel_values` float32 (batch, 3, height, width), RGB in [0, 255], to `scores` float32
        (batch, places) and `boxes` float32 (batch, places, 4), as parts of the input's sides.
    """

    def __init__(self, engine: GraphRunner, config: FaceConfig = DEFAULT) -> None:
        self.config = config
        self._engine = engine

    def detect(self, frame: UInt8Array) -> list[Face]:
        """Detect the faces of one frame, largest first.

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
        # Boxes are fractions of the padded input; this factor makes them pixels of the frame.
        to_px = np.array([pixels.shape[3] * width / size[0], pixels.shape[2] * height / size[1]] * 2)
        likely = np.flatnonzero(scores >= self.config.min_score)
        likely = likely[np.argsort(-scores[likely], kind="stable")[:N_CANDIDATES]]
        kept = [likely[k] for k in non_max_suppression(boxes[likely] * to_px, self.config.overlap)]
        faces = [self._face(boxes[k] * to_px, float(scores[k]), width, height) for k in kept]
        faces = [face for face in faces if min(face.box_px[2:]) >= self.config.min_side_px]
        faces.sort(key=lambda face: (-face.box_px[2] * face.box_px[3], face.box_px))
        return faces[: self.config.max_faces]

    def _face(self, box: FloatArray, score: float, frame_width: int, frame_height: int) -> Face:
        """A detection (left, top, width, height) cut off at the frame's edges, in whole pixels."""
        left, top = max(0, round(float(box[0]))), max(0, round(float(box[1])))
        right = min(frame_width, round(float(box[0] + box[2])))
        bottom = min(frame_height, round(float(box[1] + box[3])))
        return Face((left, top, max(0, right - left), max(0, bottom - top)), score)


def non_max_suppression(boxes: FloatArray, overlap: float) -> list[int]:
    """Greedy non-maximum suppression: drop the boxes that a better one covers.

    boxes: (n, 4), left, top, width, height, the best first. overlap: largest intersection over union of two kept boxes.
    Returns: positions of the kept boxes, rising.
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


def detector_pixels(frame: UInt8Array, size: tuple[int, int]) -> Float32Array:
    """Make the detector's input from a frame.

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


def face_pixels(frame: UInt8Array, box_px: Sequence[int], config: FaceConfig = DEFAULT) -> Float32Array:
    """Make the expression network's input from one face: squared, with a margin, grey.

    Where the square exceeds the frame, the pixels of the frame's edge are repeated.

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
    pixels: Float32Array = ((small / 255.0 - 0.5) * 2.0).astype(np.float32)
    return pixels[None]


def _scaled(rows: Float64Array) -> Float64Array:
    """Resize to FACE_SIZE rows, as fer does.

    Where the picture shrinks, a row is the mean of the rows it covers, so that fine lines of the face do not become
    noise; else it is interpolated linearly between the middles of rows. No matrix product: the threads of numpy's BLAS
    spin on the cores that the encoders compute on.

    rows: float64 (n, width). Returns: float64 (FACE_SIZE, width).
    """
    n = len(rows)
    scale = n / FACE_SIZE
    if scale > 1:
        sums = np.zeros((n + 1, rows.shape[1]))
        np.cumsum(rows, axis=0, out=sums[1:])
        return np.asarray(np.diff(_between(sums, np.arange(FACE_SIZE + 1) * scale), axis=0) / scale)
    return _between(rows, np.clip((np.arange(FACE_SIZE) + 0.5) * scale - 0.5, 0, n - 1))


def _between(rows: Float64Array, places: FloatArray) -> Float64Array:
    """Rows at fractional positions, interpolated linearly."""
    first = np.minimum(places.astype(np.intp), len(rows) - 1)
    share = (places - first)[:, None]
    return np.asarray(rows[first] * (1 - share) + rows[np.minimum(first + 1, len(rows) - 1)] * share)
