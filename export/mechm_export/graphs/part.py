"""What the exporter needs to know of a module: its inputs and outputs, and inputs to try it on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mechm_export.precision.dynamic_int8 import Int8Recipe
from mechm_runtime.bundle.manifest import Tensor

Feeds = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class ExportPart:
    """A module to export.

    module: in eval mode; takes the inputs in order as positional arguments.
    inputs, outputs: names, numpy dtypes and axes; an axis that is a name is dynamic.
    trial_sizes: sizes of the dynamic axes to compare on, the first of which the graph is traced with.
    n_heads: attention heads, for graphs whose attention is fused; 0 where there is none to fuse.
    integer_limits: exclusive upper limit of integer inputs' values; an axis' name means that axis' size (lengths: at
        least 1 up to that size).
    int8: how the part becomes int8.
    make_inputs: (sizes, random) -> inputs, where they hang together; None for random ones each.
    write: (part, path, precision) writes a graph that is not traced from the module; None for those that are.
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
        """Random inputs of the given sizes; masks have holes, lengths differ inside a batch."""
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

    def reference(self, feeds: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, npt.NDArray[np.generic]]:
        """What the torch module answers, by output name."""
        with torch.inference_mode():
            answer = self.module(*(torch.from_numpy(np.ascontiguousarray(feeds[t.name])) for t in self.inputs))
        values = answer if isinstance(answer, tuple) else (answer,)
        return {t.name: value.numpy() for t, value in zip(self.outputs, values, strict=True)}
