"""The description of a torch module for export: inputs, outputs, trial inputs, and how it becomes int8.

It converts nothing: tracing is `trace`, lower precisions are `mechm_export.precision`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from mechm_runtime.bundle.manifest import Tensor
from mechm_runtime.system.arrays import Array, Arrays

Feeds = dict[str, Array]
"""Inputs of a graph, by name."""

PortableInt8 = Literal["weights", "static"]
"""The two int8 schemes in plain ONNX operators. A bundle stores either under the precision name `w8`.

weights: int8 weights; the engine quantizes activations as they come, or computes in float.
static: int8 weights and int8 activations whose scales were measured on real inputs.
"""
WEIGHT_ONLY_INT8: PortableInt8 = "weights"
STATIC_INT8: PortableInt8 = "static"


@dataclass(frozen=True, slots=True)
class Int8Recipe:
    """How a part becomes int8.

    operators: ONNX operators whose constant weights are quantized in onnxruntime's dynamic int8.
    smoothing: strength of `smoothing.smooth`, 0 for none; it needs real inputs.
    token_scales: whether `smoothing.scale_tokens` gives every token a scale of its own.
    keep_down_projections: leave linear layers that narrow (the second of an MLP) in fp32: their inputs, behind a GELU,
        have the worst outliers.
    embeddings: whether word embeddings become int8 with one scale per row.
    default: whether the runtime prefers the int8 form where it passes the gate.
    portable: the int8 scheme for engines that read plain ONNX, None for no such graph: WEIGHT_ONLY_INT8
        (`dynamic_int8.quantize_weights`), or STATIC_INT8 (`static_int8.quantize_static_int8`), which needs real inputs.
    conv_to_matmul: whether convolutions over time become linear layers first (`precision.conv_to_matmul`).
    """

    operators: tuple[str, ...] = ("MatMul",)
    smoothing: float = 0.0
    token_scales: bool = False
    keep_down_projections: bool = False
    embeddings: bool = False
    default: bool = True
    portable: PortableInt8 | None = None
    conv_to_matmul: bool = False


@dataclass(frozen=True, slots=True)
class ExportPart:
    """A module to export.

    module: in eval mode; takes the inputs in order as positional arguments.
    inputs, outputs: names, numpy dtypes and axes; an axis that is a name is dynamic.
    trial_sizes: sizes of the dynamic axes to compare on; the graph is traced with the first.
    n_heads: attention heads, for graphs whose attention is fused; 0 where there is none to fuse.
    integer_limits: exclusive upper limit of the values of integer inputs; an axis' name means the size of that axis
        (the input holds lengths, from 1 up to that size).
    int8: how the part becomes int8.
    make_inputs: (sizes, random) -> inputs that depend on each other; None for independent random ones.
    write: (part, path, precision) writes a graph that is not traced from the module; None for traced parts.
    """

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    trial_sizes: tuple[Mapping[str, int], ...]
    n_heads: int = 0
    integer_limits: Mapping[str, int | str] | None = None
    int8: Int8Recipe = field(default_factory=Int8Recipe)
    make_inputs: Callable[[Mapping[str, int], np.random.Generator], Feeds] | None = None
    write: Callable[[ExportPart, Path, str], None] | None = None

    def trial_inputs(self, sizes: Mapping[str, int], random: np.random.Generator) -> Feeds:
        """Random inputs of the given sizes; masks have gaps, lengths differ inside a batch."""
        if self.make_inputs is not None:
            return self.make_inputs(sizes, random)
        feeds: Feeds = {}
        for tensor in self.inputs:
            shape = [axis if isinstance(axis, int) else sizes[axis] for axis in tensor.axes]
            limit = (self.integer_limits or {}).get(tensor.name)
            if tensor.dtype == "bool":
                mask = random.random(shape) < 0.7
                mask[..., 0] = True
                feeds[tensor.name] = mask
            elif tensor.dtype == "int64" and isinstance(limit, str):
                lengths = random.integers(max(1, sizes[limit] // 2), sizes[limit] + 1, shape)
                lengths[0] = sizes[limit]
                feeds[tensor.name] = lengths.astype(np.int64)
            elif tensor.dtype == "int64" and isinstance(limit, int):
                feeds[tensor.name] = random.integers(0, limit, shape).astype(np.int64)
            elif tensor.dtype == "int64":  # an attention mask: ones, then padding
                lengths = random.integers(max(1, shape[1] // 2), shape[1] + 1, (shape[0], 1))
                feeds[tensor.name] = (np.arange(shape[1])[None] < lengths).astype(np.int64)
            else:
                feeds[tensor.name] = random.normal(0.0, 1.0, shape).astype(np.float32)
        return feeds

    def reference(self, feeds: Arrays) -> dict[str, Array]:
        """The torch module's outputs for these inputs, by name."""
        with torch.inference_mode():
            answer = self.module(*(torch.from_numpy(np.ascontiguousarray(feeds[t.name])) for t in self.inputs))
        values = answer if isinstance(answer, tuple) else (answer,)
        return {t.name: value.numpy() for t, value in zip(self.outputs, values, strict=True)}
