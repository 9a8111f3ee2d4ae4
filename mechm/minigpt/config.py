"""Configuration of the image tokens for the Llama, a frozen dataclass saved as JSON with the weights.

The defaults are MiniGPT-v2's: EVA-CLIP ViT-g/14 without its last block at 448 px, four neighbouring patches per token.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Literal

from mechm_runtime.errors import WeightsError

Variant = Literal["minigpt-v2", "mer-mce", "emotion-llama"]
VARIANTS: tuple[Variant, ...] = ("minigpt-v2", "mer-mce", "emotion-llama")

PATCHES_PER_TOKEN = 4
"""Neighbouring patches of a row whose states are concatenated into one token."""

N_FEATURES = 3
"""Emotion-LLaMA's features beside the picture: of the face, of the video and of the voice."""


@dataclass(frozen=True, slots=True)
class VitShape:
    """Sizes of a ViT that its tensors do not determine. head_size: width of an attention head."""

    n_layers: int = 39
    head_size: int = 88
    image_size: int = 448


@dataclass(frozen=True, slots=True)
class ImageTokensConfig:
    """Sizes of the ViT, of the tokens and of the Llama.

    feature_size: width of Emotion-LLaMA's features; 0 for the other variants.
    """

    variant: Variant = "minigpt-v2"
    hidden_size: int = 1408
    intermediate_size: int = 6144
    n_layers: int = 39
    n_heads: int = 16
    patch_size: int = 14
    image_size: int = 448
    llama_size: int = 4096
    feature_size: int = 0

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"variant {self.variant!r} is none of {', '.join(VARIANTS)}")
        if any(type(getattr(self, name)) is not int for name in self.__slots__ if name != "variant"):
            raise ValueError("a size is not a whole number")
        if min(self.hidden_size, self.n_layers, self.n_heads, self.patch_size, self.image_size, self.llama_size) < 1:
            raise ValueError("a size is not positive")
        if self.hidden_size % self.n_heads or self.image_size % self.patch_size:
            raise ValueError("heads or patches do not divide evenly")
        if self.side % PATCHES_PER_TOKEN:
            raise ValueError(f"{self.side} patches in a row do not divide into tokens of {PATCHES_PER_TOKEN}")
        if (self.feature_size > 0) != (self.variant == "emotion-llama"):
            raise ValueError(f"feature_size={self.feature_size} for {self.variant}")

    @property
    def side(self) -> int:
        """Patches per row."""
        return self.image_size // self.patch_size

    @property
    def n_tokens(self) -> int:
        """Tokens per picture, including Emotion-LLaMA's features and class token."""
        extra = N_FEATURES + 1 if self.feature_size else 0
        return self.side**2 // PATCHES_PER_TOKEN + extra

    def to_json(self) -> str:
        """Return the config as JSON text."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ImageTokensConfig:
        """Parse a config from JSON text.

        Raises: WeightsError: fields are missing, unknown, of another type or contradict each other.
        """
        try:
            data = dict(json.loads(text))
            if data.keys() != {field.name for field in fields(cls)}:
                raise ValueError("it has other fields")
            return cls(**data)
        except (TypeError, ValueError, RecursionError) as error:
            raise WeightsError(f"not a config of image tokens: {error}") from error
