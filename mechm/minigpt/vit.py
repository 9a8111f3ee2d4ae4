"""Converts EVA-CLIP's ViT-g/14 from the tensor names of LAVIS and MiniGPT-v2 to those of `mechm.minigpt.image_tokens`.

Tensors keep their dtype; position embeddings are interpolated once, in fp32, to the picture's grid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor

from mechm.minigpt.checkpoint import check_finite, check_names, check_shapes, length
from mechm.minigpt.config import VitShape
from mechm.minigpt.keys import BLOCK, PATCHES, POSITIONS, UNUSED_OF_VIT, Key
from mechm.model.scene import interpolate_positions
from mechm_runtime.errors import WeightsError


@dataclass(frozen=True, slots=True)
class Vit:
    """A ViT's tensors by their names here, and its sizes. unused: names in the file that MiniGPT-v2 does not use."""

    state: Mapping[str, Tensor]
    hidden_size: int
    intermediate_size: int
    patch_size: int
    unused: tuple[str, ...]


def read_vit(path: Path, tensors: Mapping[str, Tensor], shape: VitShape) -> Vit:
    """Check and rename a ViT's tensors.

    tensors: by their names in the file, without a prefix.
    Raises: WeightsError: tensors are missing, unexpected, of another shape or not finite.
    """
    keys = [*PATCHES, *(_block_key(key, number) for number in range(shape.n_layers) for key in BLOCK)]
    unused = (*UNUSED_OF_VIT, rf"blocks\.{shape.n_layers}\.")
    check_names(path, tensors, [key.source for key in keys], unused)
    width, mlp = length(tensors["pos_embed"], -1), length(tensors["blocks.0.mlp.fc1.weight"], 0)
    patch = length(tensors["patch_embed.proj.weight"], -1)
    n_positions = length(tensors["pos_embed"], 1)
    if not width or width % shape.head_size:
        raise WeightsError(f"{path}: the ViT's width {width} does not divide into heads of {shape.head_size}")
    n_patches = max(n_positions - 1, 0)
    if not n_patches or isqrt(n_patches) ** 2 != n_patches or not patch or shape.image_size % patch:
        raise WeightsError(
            f"{path}: {n_positions} positions and patches of {patch} px for a picture of {shape.image_size} px"
        )
    sizes = {"width": width, "mlp": mlp, "qkv": 3 * width, "patch": patch, "positions": n_positions}
    check_shapes(path, tensors, keys, sizes)
    state = {key.target: check_finite(path, key.source, tensors[key.source]) for key in keys}
    for number in range(shape.n_layers):
        attention = f"layers.{number}.self_attn"
        q, v = state.pop(f"{attention}.q_bias"), state.pop(f"{attention}.v_bias")
        state[f"{attention}.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    state[POSITIONS.target] = interpolate_positions(state[POSITIONS.target].float(), shape.image_size // patch)
    found_unused = tuple(name for name in tensors if any(re.match(pattern, name) for pattern in unused))
    return Vit(state, width, mlp, patch, found_unused)


def _block_key(key: Key, number: int) -> Key:
    return Key(f"blocks.{number}.{key.source}", f"layers.{number}.{key.target}", key.shape)
