"""Scene encoder: the frames of an utterance to one token per frame."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mechm_runtime.bundle.config import FusionWindows, SceneConfig
from mechm_runtime.bundle.manifest import Bundle
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.fusion.inputs import FusionInputs
from mechm_runtime.modalities.frame_pixels import scene_pixels
from mechm_runtime.system.arrays import Float32Array, UInt8Array


class SceneEncoder:
    """Fills `scene` and `scene_mask`: one token per frame."""

    absent_reason = "no frame"
    """Reported where there is nothing to encode."""

    def __init__(self, config: SceneConfig, engine: GraphRunner, sizes: FusionWindows) -> None:
        self._config = config
        self._engine = engine
        self._sizes = sizes

    @classmethod
    def from_bundle(cls, bundle: Bundle, load: Callable[[str], GraphRunner]) -> SceneEncoder:
        """Build the encoder; `load` gives the engine of a part."""
        return cls(bundle.scene, load("scene"), bundle.fusion)

    def encode(self, index: int, frames: UInt8Array, inputs: FusionInputs) -> str:
        """Encode the frames of an utterance as wholes; returns an empty string, since a frame always has a token.

        index: position of the utterance. frames: uint8 (n, H, W, 3), RGB, n at least 1; those above the bundle's
        n_frames are left out.
        """
        inputs.put_tokens("scene", index, self.tokens(frames[: self._sizes.n_frames]))
        return ""

    def tokens(self, frames: UInt8Array) -> Float32Array:
        """Encode frames.

        frames: uint8 (n, H, W, 3), RGB. Returns: float32 (n, D).
        """
        pixels = np.stack([scene_pixels(frame, self._config) for frame in frames])
        return np.asarray(self._engine.run({"pixel_values": pixels})["scene_token"])
