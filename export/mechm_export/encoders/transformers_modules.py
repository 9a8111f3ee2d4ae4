"""Modules around models of transformers whose own forward is exported: they choose the output and keep padding out.

Speech encoders with a GroupNorm over time behind their first convolution (`feat_extract_norm="group"`) would count
padding in it: here the norm looks at the samples that the mask keeps, so that padded batches answer as single inputs.
The lengths reach such layers through an object that the exported module fills before it calls the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mechm_export.encoders.modules import masked_norm

Vector = Literal["pooler", "first", "mean"]
"""An input's vector: the model's own pooling, its first state (the class token), or the mean of all."""


class Lengths:
    """Samples of each utterance in the batch that is being computed, int64 (B,).

    A class of its own: torch.export copies lists and dicts that modules hold, so that a shared one would be two.
    """

    samples: Tensor


class Logits(nn.Module):
    """Logits of a classifier of transformers. names: of its inputs, in the graph's order."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)
        self.lengths = keep_padding_out(model)

    def forward(self, first: Tensor, second: Tensor | None = None, third: Tensor | None = None) -> Tensor:
        """The model's inputs in order -> float (B, n_labels)."""
        inputs = dict(zip(self.names, (first, second, third), strict=False))
        if self.lengths is not None and second is not None:  # a speech model's second input is its mask
            self.lengths.samples = second.sum(1)
        logits: Tensor = self.model(**inputs).logits
        return logits


class AudioStates(nn.Module):
    """A speech encoder's states and their mask. feature: its name of the waveform or the features."""

    def __init__(self, model: Any, feature: str) -> None:
        super().__init__()
        self.model, self.feature = model, feature
        self.lengths = keep_padding_out(model)

    def forward(self, features: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """features: float (B, S) or (B, T, n_mels). attention_mask: int64 (B, S or T), ones then zeros.

        Returns: float (B, T', D), int64 (B, T'): ones for the frames that lie within the utterance.
        """
        if self.lengths is not None:
            self.lengths.samples = attention_mask.sum(1)
        states = self.model(**{self.feature: features}, attention_mask=attention_mask).last_hidden_state
        within = attention_mask
        if hasattr(self.model, "_get_feature_vector_attention_mask"):
            within = self.model._get_feature_vector_attention_mask(states.shape[1], attention_mask)
        return states, within.to(torch.int64)


class OwnForward(nn.Module):
    """States or one vector of a model that takes no attention mask.

    names: of its inputs, in the graph's order. vector: None for the states.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], vector: Vector | None) -> None:
        super().__init__()
        self.model, self.names, self.vector = model, tuple(names), vector

    def forward(self, first: Tensor, second: Tensor | None = None, third: Tensor | None = None) -> Tensor:
        """The model's inputs in order -> float (B, ...) states, or float (B, D)."""
        inputs = dict(zip(self.names, (first, second, third), strict=False))
        answer = self.model(**inputs)
        if self.vector == "pooler":
            pooled: Tensor = answer.pooler_output
            return pooled.flatten(1)
        states: Tensor = answer.last_hidden_state
        if self.vector is None:
            return states
        if states.ndim == 4:  # a convolutional net's (B, C, H, W)
            return states.mean((2, 3))
        return states[:, 0] if self.vector == "first" else states.mean(1)


class MaskedGroupNorm(nn.Module):
    """A GroupNorm of one channel per group over an utterance's own frames.

    convolution: the one before it.
    """

    def __init__(self, norm: nn.GroupNorm, convolution: nn.Conv1d, lengths: Lengths) -> None:
        super().__init__()
        self.norm = norm
        self.kernel, self.stride = convolution.kernel_size[0], convolution.stride[0]
        self.lengths = lengths

    def forward(self, x: Tensor) -> Tensor:
        """x: float (B, C, T) -> float (B, C, T)."""
        return masked_norm(x, (self.lengths.samples - self.kernel) // self.stride + 1, self.norm)


class MaskedConvolution(nn.Module):
    """A convolution over time, which would carry what the layers before put behind an input's end.

    frames: the samples of each utterance -> its frames.
    """

    def __init__(self, layer: nn.Module, frames: Callable[[Tensor], Any], lengths: Lengths) -> None:
        super().__init__()
        self.layer, self.frames, self.lengths = layer, frames, lengths

    def forward(self, x: Tensor) -> Tensor:
        """x: float (B, D, T) -> float (B, D, T)."""
        within = torch.arange(x.shape[-1], device=x.device)[None] < self.frames(self.lengths.samples)[:, None]
        output: Tensor = self.layer(x * within[:, None].to(x.dtype))
        return output


def keep_padding_out(model: nn.Module) -> Lengths | None:
    """Replace the layers of a speech model that would mix padding into an utterance, in place.

    These are GroupNorms over time (see above); data2vec's position embedding, a stack of convolutions that transformers
    5.19 masks before the first one only; and the convolution in a Conformer's layer, which it does not mask.

    Returns: where the samples of each utterance belong, or None where there is no such layer.
    """
    lengths = Lengths()
    found = False
    for module in list(model.modules()):
        for layer in getattr(module, "conv_layers", ()):
            if isinstance(getattr(layer, "layer_norm", None), nn.GroupNorm):
                layer.layer_norm = MaskedGroupNorm(layer.layer_norm, layer.conv, lengths)
                found = True
        stack = getattr(getattr(module, "pos_conv_embed", None), "layers", None)
        if isinstance(stack, nn.ModuleList):
            frames: Any = getattr(model, "_get_feat_extract_output_lengths")  # noqa: B009 (mypy knows tensors only)
            for number, layer in enumerate(stack):
                stack[number] = MaskedConvolution(layer, frames, lengths)
            found = True
        depthwise = getattr(module, "depthwise_conv", None)
        if isinstance(depthwise, nn.Conv1d) and depthwise.padding != (0,):  # w2v-BERT's pads by itself, behind a mask
            frames = getattr(model, "_get_feat_extract_output_lengths")  # noqa: B009 (as above)
            module.depthwise_conv = MaskedConvolution(depthwise, frames, lengths)
            found = True
    return lengths if found else None
