"""Scene encoders: a ViT over whole frames, whose class token at a middle layer describes a frame.

Position embeddings are interpolated to the preset's input size when weights are loaded, so that the exported graph
contains no interpolation. Layers above the pooled one are removed.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Blip2VisionConfig, Blip2VisionModel, Dinov2Config, Dinov2Model

from mechm.model.config import SceneEncoderConfig
from mechm.model.transformers_output import quiet_transformers
from mechm_runtime.errors import WeightsError


class Dinov2SceneEncoder(nn.Module):
    """DINOv2."""

    def __init__(self, config: SceneEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.vit = Dinov2Model(_dinov2_config(config, config.image_size, config.pooled_layer))

    @classmethod
    def from_folder(cls, folder: Path, config: SceneEncoderConfig) -> Dinov2SceneEncoder:
        """Load a transformers Dinov2 folder made for `config.weights_image_size`.

        Raises: WeightsError: its sizes differ from `config`.
        """
        with quiet_transformers():
            loaded = Dinov2Model.from_pretrained(folder)
        _check_sizes(loaded.config, len(loaded.encoder.layer), config)
        encoder = cls(config)
        state = loaded.state_dict()
        name = "embeddings.position_embeddings"
        state[name] = interpolate_positions(state[name], config.image_size // config.patch_size)
        state = {key: value for key, value in state.items() if key in encoder.vit.state_dict()}
        encoder.vit.load_state_dict(state)
        return encoder.eval()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: float (B, 3, image_size, image_size), ImageNet-normalised RGB -> float (B, hidden_size)."""
        x = self.vit.embeddings(pixel_values)
        for layer in self.vit.encoder.layer:
            x = layer(x)
        class_token: Tensor = x[:, 0]
        return class_token


class EvaSceneEncoder(nn.Module):
    """EVA-CLIP ViT-g/14 in transformers' Blip2 form."""

    def __init__(self, config: SceneEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.vit = Blip2VisionModel(
            Blip2VisionConfig(
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.pooled_layer,
                num_attention_heads=config.n_heads,
                image_size=config.image_size,
                patch_size=config.patch_size,
            )
        )

    @classmethod
    def from_folder(cls, folder: Path, config: SceneEncoderConfig) -> EvaSceneEncoder:
        """Load a transformers Blip2 vision folder made for `config.weights_image_size`.

        Raises: WeightsError: its sizes differ from `config`.
        """
        with quiet_transformers():
            loaded = Blip2VisionModel.from_pretrained(folder)
        _check_sizes(loaded.config, len(loaded.encoder.layers), config)
        encoder = cls(config)
        state = loaded.state_dict()
        name = "embeddings.position_embedding"
        state[name] = interpolate_positions(state[name], config.image_size // config.patch_size)
        state = {key: value for key, value in state.items() if key in encoder.vit.state_dict()}
        encoder.vit.load_state_dict(state)
        return encoder.eval()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: float (B, 3, image_size, image_size), CLIP-normalised RGB -> float (B, hidden_size)."""
        states: Tensor = self.vit(pixel_values).last_hidden_state
        return states[:, 0]


def interpolate_positions(positions: Tensor, side: int) -> Tensor:
    """Interpolate ViT position embeddings bicubically to another grid.

    positions: float (1, 1 + old_side**2, D), the class token's first. Returns: float (1, 1 + side**2, D).
    """
    old_side = round((positions.shape[1] - 1) ** 0.5)
    if old_side == side:
        return positions
    grid = positions[:, 1:].reshape(1, old_side, old_side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)


def _check_sizes(loaded: Dinov2Config | Blip2VisionConfig, n_layers: int, config: SceneEncoderConfig) -> None:
    found, wanted = (loaded.hidden_size, loaded.patch_size), (config.hidden_size, config.patch_size)
    if found != wanted:
        raise WeightsError(f"the scene encoder has (width, patch) {found}, the preset wants {wanted}")
    if n_layers < config.pooled_layer:
        raise WeightsError(f"the scene encoder has {n_layers} layers, the preset reads layer {config.pooled_layer}")


def _dinov2_config(config: SceneEncoderConfig, image_size: int, n_layers: int) -> Dinov2Config:
    return Dinov2Config(
        hidden_size=config.hidden_size,
        num_hidden_layers=n_layers,
        num_attention_heads=config.n_heads,
        mlp_ratio=config.intermediate_size // config.hidden_size,
        image_size=image_size,
        patch_size=config.patch_size,
    )
