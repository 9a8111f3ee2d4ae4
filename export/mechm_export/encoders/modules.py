"""Modules that are exported for each family: states, the mask of those that count, and one vector per input.

Padded batches answer as single inputs do. transformers' models nearly do that; where they do not, the layers are driven
from here:

- HuBERT and wav2vec2 with `feat_extract_norm="group"` (the base models) normalise the first convolution over time,
  padding included, and were trained without masks: transformers' padded batches differ from single inputs. Here the
  norm looks at the samples that the mask keeps, which gives every input what it gets alone.
- Whisper pads to 30 s and takes no mask; see `mechm.model.audio`.

What lies behind an input's end in the returned states is undefined; the returned mask says where that is.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mechm.model.audio import embed_mel, layer_states
from mechm.model.scene import interpolate_positions

Pooling = Literal["mean", "cls"]


class TextStates(nn.Module):
    """BERT and its relatives, and CLIP's text encoder."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """input_ids, attention_mask: int64 (B, T) -> float (B, T, D), int64 (B, T)."""
        answer = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return answer.last_hidden_state, attention_mask


class Wav2Vec2States(nn.Module):
    """wav2vec2, HuBERT and WavLM over the waveform."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_values: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode utterances.

        input_values: float (B, S), 16 kHz mono. attention_mask: int64 (B, S), ones then zeros.
        Returns: float (B, T, D), and int64 (B, T): ones for the frames that lie within the utterance.
        """
        model = self.model
        n_samples = attention_mask.sum(1)
        x = input_values[:, None]
        for number, layer in enumerate(model.feature_extractor.conv_layers):
            if number == 0 and isinstance(getattr(layer, "layer_norm", None), nn.GroupNorm):
                x = layer.conv(x)
                # Only frames that lie within the utterance: what a convolution without padding gives it alone.
                kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
                x = layer.activation(masked_norm(x, (n_samples - kernel) // stride + 1, layer.layer_norm))
            else:
                x = layer(x)
        frames = model._get_feat_extract_output_lengths(n_samples)
        within = torch.arange(x.shape[-1], device=x.device)[None] < frames[:, None]
        projected = model.feature_projection(x.transpose(1, 2))
        x = projected[0] if isinstance(projected, tuple) else projected
        with warnings.catch_warnings():  # WavLM's mask and position bias have two types, and torch says so each time
            warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask", UserWarning)
            states = model.encoder(x, attention_mask=within).last_hidden_state
        return states, within.to(torch.int64)


class WhisperStates(nn.Module):
    """Whisper's encoder over log-mel frames, of any length up to 30 s."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_features: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode utterances.

        input_features: float (B, n_mels, T), log-mel, 10 ms per frame. attention_mask: int64 (B, T), ones then zeros.
        Returns: float (B, (T + 1) // 2, D), and int64 (B, (T + 1) // 2).
        """
        x, within = embed_mel(self.encoder, input_features, attention_mask.sum(1))
        *_, states = layer_states(x, self.encoder, within)
        return states, within.to(torch.int64)


class States(nn.Module):
    """States alone, or with their mask where that differs from the input's."""

    def __init__(self, states: nn.Module, *, with_mask: bool) -> None:
        super().__init__()
        self.states, self.with_mask = states, with_mask

    def forward(self, features: Tensor, attention_mask: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Inputs of `states` -> float (B, T, D), and int64 (B, T)."""
        states, mask = self.states(features, attention_mask)
        return (states, mask) if self.with_mask else states


class PooledStates(nn.Module):
    """One vector an input: the mean of the states that count, or the first."""

    def __init__(self, states: nn.Module, pooling: Pooling = "mean", *, normalize: bool = False) -> None:
        super().__init__()
        self.states, self.pooling, self.normalize = states, pooling, normalize

    def forward(self, features: Tensor, attention_mask: Tensor) -> Tensor:
        """Inputs of `states` -> float (B, D)."""
        states, mask = self.states(features, attention_mask)
        if self.pooling == "cls":
            vector: Tensor = states[:, 0]
        else:
            weight = mask[..., None].to(states.dtype)
            vector = (states * weight).sum(1) / weight.sum(1)
        return F.normalize(vector) if self.normalize else vector


class OneOutput(nn.Module):
    """One named output of a transformers model that needs no mask of ours.

    output: a field of the model's answer; `class_token` for the first of its states. feature: the model's name of its
    first input.
    """

    def __init__(self, model: nn.Module, output: str, feature: str) -> None:
        super().__init__()
        self.model, self.output, self.feature = model, output, feature

    def forward(self, features: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The model's inputs -> the output."""
        mask = {} if attention_mask is None else {"attention_mask": attention_mask}
        answer = self.model(**{self.feature: features}, **mask)
        value: Tensor = answer.last_hidden_state[:, 0] if self.output == "class_token" else answer[self.output]
        return value


def resize_positions(model: nn.Module, side: int) -> None:
    """Make a ViT's position embeddings fit images of another size, once and in place (bicubic interpolation).

    side: pixels of the square images.
    """
    (embeddings,) = (m for name, m in model.named_modules() if name.rpartition(".")[2] == "embeddings")
    table: Any = getattr(embeddings, "position_embedding", None)
    name = "position_embedding"
    if table is None:  # DINOv2's name
        table, name = embeddings.position_embeddings, "position_embeddings"
    old = table.weight[None] if isinstance(table, nn.Embedding) else table
    config: Any = embeddings.config
    grid = side // config.patch_size
    has_class_token = old.shape[1] != (config.image_size // config.patch_size) ** 2
    positions = old.detach() if has_class_token else torch.cat([old.detach()[:, :1], old.detach()], 1)
    positions = interpolate_positions(positions, grid)[:, 0 if has_class_token else 1 :].clone()
    fitted: Any = embeddings
    if isinstance(table, nn.Embedding):
        setattr(fitted, name, nn.Embedding(positions.shape[1], positions.shape[2], _weight=positions[0], _freeze=True))
        fitted.position_ids = torch.arange(positions.shape[1])[None]
    else:
        setattr(fitted, name, nn.Parameter(positions))
    # Each of these says which images are refused.
    for module in embeddings.modules():
        if hasattr(module, "image_size"):
            square = isinstance(module.image_size, tuple)
            setattr(module, "image_size", (side, side) if square else side)  # noqa: B010 (mypy knows modules' tensors only)
    config.image_size = side


def masked_norm(x: Tensor, n_frames: Tensor, norm: nn.GroupNorm) -> Tensor:
    """A norm of each channel over an utterance's own frames: x (B, C, T), n_frames int64 (B,) -> (B, C, T)."""
    weight = (torch.arange(x.shape[-1], device=x.device)[None] < n_frames[:, None])[:, None].to(x.dtype)
    count = weight.sum(-1, keepdim=True)
    mean = (x * weight).sum(-1, keepdim=True) / count
    centred = x - mean
    variance = (centred.square() * weight).sum(-1, keepdim=True) / count
    return centred / (variance + norm.eps).sqrt() * norm.weight[:, None] + norm.bias[:, None]
