"""Configuration of every part as frozen dataclasses, saved as JSON with the weights, and the three presets.

It does not import torch. Sizes that contradict each other raise ValueError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar

from mechm_runtime.errors import WeightsError
from mechm_runtime.types import EMOTIONS


@dataclass(frozen=True, slots=True)
class TextEncoderConfig:
    """A sentence encoder of the BERT family.

    lora_rank: rank of the trained LoRA adapter; 0 trains the encoder itself.
    """

    architecture: Literal["mpnet", "bert"] = "mpnet"
    vocab_size: int = 30527
    hidden_size: int = 768
    n_layers: int = 12
    n_heads: int = 12
    intermediate_size: int = 3072
    max_tokens: int = 512
    lora_rank: int = 32

    def __post_init__(self) -> None:
        _check_choice(self.architecture, ("mpnet", "bert"))
        _check_heads(self.hidden_size, self.n_heads)
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank={self.lora_rank} is negative")


@dataclass(frozen=True, slots=True)
class AudioEncoderConfig:
    """A speech encoder. `whisper` takes log-mel frames, `hubert` the waveform.

    pooled_layers: 1-based layers whose mean and deviation over time become the utterance's audio tokens.
    """

    architecture: Literal["whisper", "hubert"] = "whisper"
    hidden_size: int = 384
    n_layers: int = 4
    n_heads: int = 6
    intermediate_size: int = 1536
    n_mels: int = 80
    max_positions: int = 1500
    pooled_layers: tuple[int, ...] = (1, 2, 3, 4)

    def __post_init__(self) -> None:
        _check_choice(self.architecture, ("whisper", "hubert"))
        _check_heads(self.hidden_size, self.n_heads)
        wanted = self.pooled_layers
        if not wanted or list(wanted) != sorted(set(wanted)) or wanted[0] < 1 or wanted[-1] > self.n_layers:
            raise ValueError(f"pooled_layers={wanted} are not rising layers from 1 to {self.n_layers}")


@dataclass(frozen=True, slots=True)
class SceneEncoderConfig:
    """A ViT over whole frames. `blip2` is transformers' name for the EVA-CLIP ViT-g/14 of MiniGPT-v2.

    image_size: side of the input in pixels. weights_image_size: side the position embeddings were made for.
    pooled_layer: 1-based layer whose class token describes the frame.
    """

    architecture: Literal["dinov2", "blip2"] = "dinov2"
    hidden_size: int = 384
    n_layers: int = 12
    n_heads: int = 6
    intermediate_size: int = 1536
    patch_size: int = 14
    image_size: int = 224
    weights_image_size: int = 518
    pooled_layer: int = 9

    def __post_init__(self) -> None:
        _check_choice(self.architecture, ("dinov2", "blip2"))
        _check_heads(self.hidden_size, self.n_heads)
        if not 1 <= self.pooled_layer <= self.n_layers:
            raise ValueError(f"pooled_layer={self.pooled_layer} is not a layer from 1 to {self.n_layers}")
        if self.image_size % self.patch_size or self.weights_image_size % self.patch_size:
            raise ValueError(f"images of {self.image_size} px do not divide into patches of {self.patch_size} px")
        if self.architecture == "dinov2" and self.intermediate_size % self.hidden_size:
            raise ValueError("DINOv2's intermediate_size is a multiple of its hidden_size")


@dataclass(frozen=True, slots=True)
class FusionConfig:
    """Cross-modal attention, the utterance transformer and both heads.

    face_width: features per face (seven probabilities and its share of the frame's height).
    max_distance: utterances further apart than this share one relative-position entry.
    window, window_context: utterances per window of a long conversation, and how many of them on each side are context
        only.
    """

    n_emotions: int = len(EMOTIONS)
    face_width: int = 8
    hidden_size: int = 256
    n_heads: int = 4
    n_layers: int = 2
    intermediate_size: int = 512
    pair_size: int = 128
    max_distance: int = 16
    window: int = 64
    window_context: int = 16
    dropout: float = 0.2

    def __post_init__(self) -> None:
        _check_heads(self.hidden_size, self.n_heads)
        if self.window <= 2 * self.window_context:
            raise ValueError(f"window_context={self.window_context} leaves no core in window={self.window}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} is not in [0, 1)")


Part = TypeVar("Part", TextEncoderConfig, AudioEncoderConfig, SceneEncoderConfig, FusionConfig)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One preset: the parts' configurations, frames per utterance and faces per frame."""

    preset: str
    text: TextEncoderConfig
    audio: AudioEncoderConfig
    scene: SceneEncoderConfig
    fusion: FusionConfig
    n_frames: int = 3
    max_faces: int = 2

    def to_json(self) -> str:
        """Return the config as JSON text."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Parse a config from JSON text.

        Raises: WeightsError: fields are missing, unknown, of another type or contradict each other.
        """
        try:
            data = dict(json.loads(text))
            return cls(
                preset=str(data.pop("preset")),
                text=_build(TextEncoderConfig, data.pop("text")),
                audio=_build(AudioEncoderConfig, data.pop("audio")),
                scene=_build(SceneEncoderConfig, data.pop("scene")),
                fusion=_build(FusionConfig, data.pop("fusion")),
                n_frames=_integer(data.pop("n_frames")),
                max_faces=_integer(data.pop("max_faces")),
                **data,
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise WeightsError(f"not a model config of this version: {error}") from error


def _build(kind: type[Part], given: Mapping[str, object]) -> Part:
    """Build a part's config from JSON values, which must have the types of the defaults (lists for tuples)."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in dict(given).items()
    }
    names = {field.name for field in fields(kind)}
    if names != values.keys():
        raise ValueError(f"{kind.__name__} has other fields: {', '.join(sorted(names ^ values.keys()))}")
    for field in fields(kind):
        value = values[field.name]
        items = value if isinstance(value, tuple) else ()
        if type(value) is not type(field.default) or not all(type(item) is int for item in items):
            raise ValueError(f"{field.name} of {kind.__name__} is {str(value)[:40]!r}")
    return kind(**values)


def _integer(value: object) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{str(value)[:40]!r} is not a count")
    return value


def _check_choice(value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{value!r} is none of {', '.join(choices)}")


def _check_heads(hidden_size: int, n_heads: int) -> None:
    if hidden_size < 1 or n_heads < 1 or hidden_size % n_heads:
        raise ValueError(f"hidden_size={hidden_size} does not divide into {n_heads} heads")


SMALL = ModelConfig("small", TextEncoderConfig(), AudioEncoderConfig(), SceneEncoderConfig(), FusionConfig())

TINY = ModelConfig(
    "tiny",
    TextEncoderConfig(hidden_size=32, n_layers=2, n_heads=2, intermediate_size=64, max_tokens=64, lora_rank=0),
    AudioEncoderConfig(hidden_size=32, n_layers=2, n_heads=2, intermediate_size=64, pooled_layers=(1, 2)),
    SceneEncoderConfig(
        hidden_size=32, n_layers=2, n_heads=2, intermediate_size=64, weights_image_size=224, pooled_layer=2
    ),
    FusionConfig(
        hidden_size=32, n_heads=2, n_layers=1, intermediate_size=64, pair_size=16, window=12, window_context=4
    ),
)

# EVA-CLIP ViT-g/14 without its last layer at 448 px, as MiniGPT-v2 and MER-MCE use it, and HuBERT-large.
LLAMA2_7B = ModelConfig(
    "llama2-7b",
    TextEncoderConfig(),
    AudioEncoderConfig(
        architecture="hubert",
        hidden_size=1024,
        n_layers=24,
        n_heads=16,
        intermediate_size=4096,
        pooled_layers=(6, 12, 18, 24),
    ),
    SceneEncoderConfig(
        architecture="blip2",
        hidden_size=1408,
        n_layers=39,
        n_heads=16,
        intermediate_size=6144,
        image_size=448,
        weights_image_size=224,
        pooled_layer=39,
    ),
    FusionConfig(hidden_size=512, n_heads=8, intermediate_size=1024),
)

PRESETS: dict[str, ModelConfig] = {config.preset: config for config in (SMALL, TINY, LLAMA2_7B)}


def preset_config(name: str) -> ModelConfig:
    """Return the config of a preset.

    Raises: WeightsError: no such preset.
    """
    if name not in PRESETS:
        raise WeightsError(f"unknown preset {name!r}", hint=f"choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
