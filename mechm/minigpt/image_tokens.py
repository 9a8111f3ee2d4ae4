"""Turns a picture into tokens for the Llama: EVA-CLIP's ViT, four neighbouring patches per token, a linear map.

It follows `MiniGPTv2.encode_img` (Vision-CAIR/MiniGPT-4, `models/minigpt_v2.py`) and Emotion-LLaMA's, which adds the
class token and three features. The blocks are those of transformers' BLIP-2, which has the same ViT.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Blip2VisionConfig, Blip2VisionModel

from mechm.llm.stored_base import read_text
from mechm.minigpt.config import N_FEATURES, PATCHES_PER_TOKEN, ImageTokensConfig
from mechm_runtime.errors import InputError, WeightsError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


class ImageTokens(nn.Module):
    """Maps pixels to tokens in the Llama's embedding space."""

    def __init__(self, config: ImageTokensConfig) -> None:
        super().__init__()
        self.config = config
        vit = Blip2VisionModel(
            Blip2VisionConfig(
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.n_layers,
                num_attention_heads=config.n_heads,
                image_size=config.image_size,
                patch_size=config.patch_size,
                layer_norm_eps=1e-6,
            )
        )
        self.embeddings, self.layers = vit.embeddings, vit.encoder.layers
        self.ln_vision = nn.LayerNorm(config.hidden_size)  # epsilon 1e-5, unlike within the ViT
        self.llama_proj = nn.Linear(PATCHES_PER_TOKEN * config.hidden_size, config.llama_size)
        if config.feature_size:
            self.feats_llama_proj = nn.ModuleList(
                nn.Linear(config.feature_size, config.llama_size) for _ in range(N_FEATURES)
            )
            self.cls_tk_llama_proj = nn.Linear(config.hidden_size, config.llama_size)

    @classmethod
    def from_folder(cls, folder: Path, dtype: torch.dtype = torch.float32) -> ImageTokens:
        """Load weights written by `mechm import`, in one dtype.

        Raises: WeightsError: files are missing, damaged or do not fit each other.
        """
        config = ImageTokensConfig.from_json(read_text(folder / CONFIG_FILE))
        with torch.device("meta"):  # avoids initialising a billion random weights
            module = cls(config)
        try:
            state = {name: tensor.to(dtype) for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
            module.load_state_dict(state, assign=True)
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise WeightsError(f"{folder} is not what was imported: {reason}", hint="import it again") from error
        return module.eval()

    def forward(self, pixel_values: Tensor, features: Tensor | None = None) -> Tensor:
        """Encode pictures.

        pixel_values: float (B, 3, image_size, image_size), CLIP-normalised RGB.
        features: float (B, 3, feature_size), for Emotion-LLaMA only: of the face (MAE), of the video (VideoMAE) and of
            the voice (HuBERT), each over the whole utterance.
        Returns: float (B, n_tokens, llama_size).
        Raises: InputError: features are missing, not wanted or of another shape.
        """
        self._check_features(features, len(pixel_values))
        x = self.embeddings(pixel_values)
        for layer in self.layers:
            x = layer(x)
        x = self.ln_vision(x)
        # Patches are in row-major order, and a token's four patches are always in one row.
        patches = x[:, 1:].reshape(len(x), -1, PATCHES_PER_TOKEN * self.config.hidden_size)
        tokens: Tensor = self.llama_proj(patches)
        if features is None:
            return tokens
        given = features.to(tokens.dtype).unbind(1)
        projected = [project(one)[:, None] for project, one in zip(self.feats_llama_proj, given, strict=True)]
        return torch.cat([tokens, *projected, self.cls_tk_llama_proj(x[:, :1])], 1)

    def _check_features(self, features: Tensor | None, n_pictures: int) -> None:
        size = self.config.feature_size
        if (features is None) != (size == 0):
            needs = f"needs features (3, {size}) beside a picture" if size else "reads no features"
            raise InputError(f"{self.config.variant} {needs}")
        if features is not None and features.shape != (n_pictures, N_FEATURES, size):
            raise InputError(f"features {tuple(features.shape)} where {(n_pictures, N_FEATURES, size)} is expected")
