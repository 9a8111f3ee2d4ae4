"""Scene encoder: the frames of an utterance to one token per frame."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mechm_runtime.bundle.config import FusionWindows, SceneConfig
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.fusion.inputs import FusionInputs
from mechm_runtime.modalities.frame_pixels import scene_pixels


class SceneReader:
    """Fills scene and scene_mask."""

    def __init__(self, config: SceneConfig, engine: GraphRunner, sizes: FusionWindows) -> None:
        self._config = config
        self._engine = engine
        self._sizes = sizes

    def read(self, index: int, frames: npt.NDArray[np.uint8], inputs: FusionInputs) -> None:
        """Read the frames of an utterance as wholes.

        frames: uint8 (n, H, W, 3), RGB; those above the bundle's n_frames are left out.
        """
        kept = frames[: self._sizes.n_frames]
        inputs.scene[index, : len(kept)] = self.tokens(kept)
        inputs.scene_mask[index, : len(kept)] = True

    def tokens(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 (n, H, W, 3), RGB -> float32 (n, D)."""
        pixels = np.stack([scene_pixels(frame, self._config) for frame in frames])
        return np.asarray(self._engine.run({"pixel_values": pixels})["scene_token"])
