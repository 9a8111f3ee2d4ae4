"""Graph files on disk: weights inside the file or beside it, and no traces of the machine that wrote them.

A leaf: it knows neither torch nor the parts of a bundle.
"""

from __future__ import annotations

import math
from pathlib import Path

import onnx
from onnx import helper

MICROSOFT = "com.microsoft"
"""Domain of onnxruntime's own operators."""

EXTERNAL_BYTES = 1_900_000_000
"""Weights above this lie in a file beside the graph: protobuf holds less than 2 GiB."""


def needs_data_file(weight_bytes: int) -> bool:
    """Whether weights of this size have to lie in a file beside the graph."""
    return weight_bytes > EXTERNAL_BYTES


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph whose weights are in memory; above EXTERNAL_BYTES its weights go to `<path>.data` beside it."""
    data = data_file(path)
    data.unlink(missing_ok=True)  # onnx appends to an existing file
    if has_large_weights(model):
        onnx.save_model(model, path, save_as_external_data=True, location=data.name)
    else:
        onnx.save_model(model, path)


def has_large_weights(model: onnx.ModelProto) -> bool:
    """Whether a graph's weights, in memory or beside it, are too large for one file."""
    return needs_data_file(sum(tensor_bytes(tensor) for tensor in model.graph.initializer))


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Size of a tensor's values in bytes."""
    n_values: int = math.prod(tensor.dims)
    return n_values * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def data_file(path: Path) -> Path:
    """Path of the file beside a graph that holds the weights outside it."""
    return path.with_name(f"{path.name}.data")


def strip_provenance(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes about the machine and the Python source, so that equal weights give equal bytes."""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    for item in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
