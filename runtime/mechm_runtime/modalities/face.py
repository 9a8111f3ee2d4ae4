"""Face encoder: the expressions of the faces in the frames of an utterance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mechm_runtime.bundle.config import FusionWindows
from mechm_runtime.bundle.manifest import Bundle
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.fusion.inputs import FusionInputs
from mechm_runtime.modalities.face_detection import FaceDetector, face_pixels
from mechm_runtime.system.arrays import Float32Array, UInt8Array, softmax
from mechm_runtime.system.time_limit import check_time


class FaceEncoder:
    """Fills `face` and `face_mask`: one token per face, expression probabilities and the face's height in its frame."""

    absent_reason = "no face found"
    """Reported where frames hold nothing to encode."""

    def __init__(self, detector: FaceDetector, engine: GraphRunner, sizes: FusionWindows) -> None:
        self._detector = detector
        self._engine = engine
        self._sizes = sizes

    @classmethod
    def from_bundle(cls, bundle: Bundle, load: Callable[[str], GraphRunner]) -> FaceEncoder:
        """Build the encoder; `load` gives the engine of a part."""
        detector = FaceDetector(load("detector"), bundle.faces)
        return cls(detector, load("expression"), bundle.fusion)

    def encode(self, index: int, frames: UInt8Array, inputs: FusionInputs) -> str:
        """Encode the faces in the frames of an utterance; returns why there are none, or an empty string.

        index: position of the utterance. frames: uint8 (n, H, W, 3), RGB; those above the bundle's n_frames are left
        out.
        """
        faces = self.tokens(frames[: self._sizes.n_frames])
        inputs.put_tokens("face", index, faces)
        return "" if len(faces) else self.absent_reason

    def tokens(self, frames: UInt8Array) -> Float32Array:
        """Encode the faces in some frames.

        frames: uint8 (n, H, W, 3), RGB.
        Returns: float32 (faces, face width), at most `max_faces` per frame.
        Raises: OutOfTimeError: the request's time limit passed between two frames.
        """
        crops, heights = [], []
        for frame in frames:
            check_time()
            for face in self._detector.detect(frame)[: self._sizes.max_faces]:
                crops.append(face_pixels(frame, face.box_px, self._detector.config))
                heights.append(face.box_px[3] / frame.shape[0])
        if not crops:
            return np.zeros((0, self._sizes.face_width), np.float32)
        logits = self._engine.run({"pixel_values": np.stack(crops)})["expression_logits"]
        return np.concatenate([softmax(logits), np.array(heights, np.float32)[:, None]], -1)
