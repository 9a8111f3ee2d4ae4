"""Face encoder: the expressions of the faces in the frames of an utterance."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mechm_runtime.bundle.config import FusionWindows
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.fusion.inputs import FusionInputs
from mechm_runtime.modalities.face_detection import FaceFinder, face_pixels
from mechm_runtime.system.arrays import softmax

NO_FACE = "no face found"


class FaceReader:
    """Fills face and face_mask."""

    def __init__(self, finder: FaceFinder, engine: GraphRunner, sizes: FusionWindows) -> None:
        self._finder = finder
        self._engine = engine
        self._sizes = sizes

    def read(self, index: int, frames: npt.NDArray[np.uint8], inputs: FusionInputs) -> str:
        """Read the faces in the frames of an utterance; returns why there are none, or an empty string.

        frames: uint8 (n, H, W, 3), RGB; those above the bundle's n_frames are left out.
        """
        faces = self.tokens(frames[: self._sizes.n_frames])
        inputs.face[index, : len(faces)] = faces
        inputs.face_mask[index, : len(faces)] = True
        return "" if len(faces) else NO_FACE

    def tokens(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """What the faces in some frames show.

        frames: uint8 (n, H, W, 3), RGB.
        Returns: float32 (faces, face width), at most `max_faces` a frame.
        """
        crops, heights = [], []
        for frame in frames:
            for face in self._finder.find(frame)[: self._sizes.max_faces]:
                crops.append(face_pixels(frame, face.box_px, self._finder.config))
                heights.append(face.box_px[3] / frame.shape[0])
        if not crops:
            return np.zeros((0, self._sizes.face_width), np.float32)
        logits = self._engine.run({"pixel_values": np.stack(crops)})["expression_logits"]
        return np.concatenate([softmax(logits), np.array(heights, np.float32)[:, None]], -1)
