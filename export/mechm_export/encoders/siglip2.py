"""SigLIP 2 with patches of any grid: position embeddings resized inside the graph.

transformers 5.19 resizes them image by image with `F.interpolate` (bilinear, antialiased), whose size has to be a
number, so that a graph would keep the grid it was traced with. Bilinear resizing is a product with two matrices, which
are computed here from every image's grid; the values are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mechm_export.graphs.part import Feeds

NAMES = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
"""The inputs that transformers' Siglip2ImageProcessor makes."""


def use_resized_positions(model: nn.Module) -> None:
    """Let a SigLIP 2 vision model resize its positions by `resize_positions`, in place."""
    for module in model.modules():
        if hasattr(module, "resize_positional_embeddings"):
            embeddings: Any = module
            embeddings.resize_positional_embeddings = resize_positions


def resize_positions(positions: Tensor, spatial_shapes: Tensor, max_length: int) -> Tensor:
    """Position embeddings of every patch.

    positions: float (H, W, D). spatial_shapes: int64 (B, 2), rows and columns of each image's patches. max_length:
    patches of the longest image, N. Returns: float (B, N, D); behind an image's patches those of its first.
    """
    rows, columns = spatial_shapes[:, :1], spatial_shapes[:, 1:]
    patch = torch.arange(max_length, device=positions.device)[None]
    patch = torch.where(patch < rows * columns, patch, 0)
    down = _weights(patch // columns, rows, positions.shape[0])
    across = _weights(patch % columns, columns, positions.shape[1])
    return torch.einsum("bni,bnj,ijd->bnd", down, across, positions)


def patch_inputs(
    axes: tuple[int | str, int | str], width: int, sizes: Mapping[str, int], random: np.random.Generator
) -> Feeds:
    """Random patches of grids of several shapes.

    axes: batch and patches. width: values of a patch.
    """
    batch, patches = (axis if isinstance(axis, int) else sizes[axis] for axis in axes)
    rows = random.integers(1, max(2, int(patches**0.5) + 1), batch)
    shapes = np.stack([rows, patches // rows], 1).astype(np.int64)
    mask = (np.arange(patches)[None] < shapes.prod(1)[:, None]).astype(np.int64)
    pixels = random.normal(0.0, 1.0, (batch, patches, width)).astype(np.float32)
    return dict(zip(NAMES, (pixels, mask, shapes), strict=True))


def _weights(index: Tensor, size: Tensor, n_positions: int) -> Tensor:
    """Weights of the positions along one side, as torch's antialiased bilinear filter has them.

    index: int64 (B, N), the place on the resized side. size: int64 (B, 1), its length. Returns: float (B, N,
    n_positions), rows that sum to 1.
    """
    scale = n_positions / size.to(torch.float32)[..., None]
    centre = (index.to(torch.float32)[..., None] + 0.5) * scale
    place = torch.arange(n_positions, device=index.device, dtype=torch.float32) + 0.5
    weights = (1 - (place - centre).abs() / scale.clamp(min=1)).clamp(min=0)
    return weights / weights.sum(-1, keepdim=True)
