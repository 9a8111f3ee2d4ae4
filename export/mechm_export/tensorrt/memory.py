"""Estimate of an engine's memory on a GPU, from its graph, before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from mechm_export.precision.tensor_types import without_weights
from mechm_runtime.bundle.engine_file import ShapeRange


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes of weights, and of the activations that are needed at once at the largest shapes."""

    weights: int
    activations: int

    @property
    def total(self) -> int:
        """Bytes of weights and activations together."""
        return self.weights + self.activations


def estimate_memory(path: Path, shapes: Sequence[ShapeRange]) -> MemoryEstimate:
    """Estimate the memory that an engine needs if every operator's result is stored.

    TensorRT fuses most operators, attention above all, and stores less. Convolutions may need some megabytes of
    workspace, which the estimate leaves out. A tensor of unknown shape counts as the largest one of known shape.
    path: an ONNX file. shapes: of all its inputs.
    """
    model = onnx.load(path)
    weights = sum(int(np.prod(i.dims)) * _bytes_of(i.data_type) for i in model.graph.initializer)
    light = without_weights(model)
    largest = {shape.tensor: shape.largest for shape in shapes}
    for value in light.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, largest.get(value.name, ()), strict=False):
            dim.dim_value = size
    del light.graph.value_info[:]  # it has names of axes where inference needs sizes
    for value in light.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    sizes = {
        v.name: size
        for v in (*graph.value_info, *graph.input, *graph.output)
        if (size := _size(v.type.tensor_type)) > 0
    }
    return MemoryEstimate(weights, _peak_activation_bytes(model.graph, sizes))


def _peak_activation_bytes(graph: onnx.GraphProto, sizes: dict[str, int]) -> int:
    """Largest sum of bytes of the results that are still to be read, over a run of the nodes in order."""
    constants = {i.name for i in graph.initializer}
    names = {name for node in graph.node for name in node.output} | {v.name for v in graph.input}
    assumed = max((sizes[name] for name in names if name in sizes), default=0)
    last_read = {name: position for position, node in enumerate(graph.node) for name in node.input}
    last_read |= {output.name: len(graph.node) for output in graph.output}
    alive = {value.name: sizes.get(value.name, assumed) for value in graph.input if value.name not in constants}
    peak = sum(alive.values())
    for position, node in enumerate(graph.node):
        alive |= {name: sizes.get(name, assumed) for name in node.output if name}
        peak = max(peak, sum(alive.values()))
        for name in [name for name in alive if last_read.get(name, position) <= position]:
            del alive[name]
    return peak


def _size(tensor_type: onnx.TypeProto.Tensor) -> int:
    """Bytes of a tensor, 0 if its shape is not known."""
    dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor_type.shape.dim]
    if not tensor_type.HasField("shape") or min(dims, default=1) < 0 or not tensor_type.elem_type:
        return 0
    return int(np.prod(dims)) * _bytes_of(tensor_type.elem_type)


def _bytes_of(element_type: int) -> int:
    return int(np.dtype(helper.tensor_dtype_to_np_dtype(element_type)).itemsize)
