"""torch modules to ONNX graphs, and the attention rewrite that onnxruntime's CPU kernels want.

`portable` graphs are opset 18 with attention written out: every engine reads them. `fused` graphs are opset 23, whose
Attention operators are rewritten to onnxruntime's MultiHeadAttention; they are the base of int8 on CPU, where that
made dynamic int8 2 to 3.7 times faster than torch (DESIGN.md section 7).
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from mechm_runtime.errors import VerificationError

if TYPE_CHECKING:
    from mechm_export.graphs.part import ExportPart

GraphKind = Literal["portable", "fused"]
OPSETS: dict[GraphKind, int] = {"portable": 18, "fused": 23}
MICROSOFT = "com.microsoft"
"""The domain of onnxruntime's own operators."""

EXTERNAL_BYTES = 1_900_000_000
"""Weights above this lie in a file beside the graph: protobuf holds less than 2 GiB."""


def export_graph(part: ExportPart, path: Path, kind: GraphKind, opset: int | None = None) -> None:
    """Write a part as one ONNX file with its weights inside, or beside it in `<path>.data` above EXTERNAL_BYTES.

    opset: None for the kind's own.
    Raises: VerificationError: the exporter returned no graph.
    """
    external = sum(p.numel() * p.element_size() for p in part.module.parameters()) > EXTERNAL_BYTES
    feeds = part.trial_inputs(part.trial_sizes[0], np.random.default_rng(0))
    arguments = tuple(torch.from_numpy(feeds[tensor.name]) for tensor in part.inputs)
    dynamic = tuple({i: axis for i, axis in enumerate(t.axes) if isinstance(axis, str)} for t in part.inputs)
    with _attention(part.module, "eager" if kind == "portable" else "sdpa"), _quiet():
        program = torch.onnx.export(
            part.module,
            arguments,
            dynamo=True,
            opset_version=opset or OPSETS[kind],
            input_names=[tensor.name for tensor in part.inputs],
            output_names=[tensor.name for tensor in part.outputs],
            dynamic_shapes=dynamic,
            external_data=False,
            optimize=True,
        )
    if program is None:  # the annotation allows it for the exporter before dynamo
        raise VerificationError(f"{part.name}: the exporter returned no graph")
    if external:  # written tensor by tensor: the weights are never in memory twice
        with _quiet():
            program.save(path, external_data=True)
        model = onnx.load(path, load_external_data=False)
    else:
        model = program.model_proto
    if kind == "fused" and part.n_heads:
        fuse_attention(model, part.n_heads)
    strip_provenance(model)
    onnx.save_model(model, path)
    onnx.checker.check_model(path)


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph whose weights are in memory, above EXTERNAL_BYTES with its weights beside it in `<path>.data`."""
    data = data_file(path)
    data.unlink(missing_ok=True)  # onnx appends to what is there
    if has_large_weights(model):
        onnx.save_model(model, path, save_as_external_data=True, location=data.name)
    else:
        onnx.save_model(model, path)


def has_large_weights(model: onnx.ModelProto) -> bool:
    """Whether a graph's weights, in memory or beside it, are too many for one file."""
    return sum(tensor_bytes(tensor) for tensor in model.graph.initializer) > EXTERNAL_BYTES


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """How many bytes a tensor's values take."""
    n_values: int = math.prod(tensor.dims)
    return n_values * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def data_file(path: Path) -> Path:
    """Where the weights of a graph file lie that are not in it."""
    return path.with_name(f"{path.name}.data")


def fuse_attention(model: onnx.ModelProto, n_heads: int) -> int:
    """Rewrite Attention (B, H, T, D) to MultiHeadAttention (B, T, H * D) in place; returns how many there were.

    The transposes around the operator cancel with those the exporter wrote, in onnxruntime's own optimiser.
    Raises: VerificationError: an Attention asks for something that the rewrite would lose.
    """
    graph = model.graph
    constants = {
        "mha_merge": np.array([0, 0, -1], np.int64),
        "mha_split": np.array([0, 0, n_heads, -1], np.int64),
    }
    boolean = {
        v.name for v in (*graph.value_info, *graph.input) if v.type.tensor_type.elem_type == onnx.TensorProto.BOOL
    }
    nodes: list[onnx.NodeProto] = []
    biases: dict[str, str] = {}
    count = 0
    for node in graph.node:
        if node.op_type != "Attention" or node.domain not in ("", "ai.onnx"):
            nodes.append(node)
            continue
        _check_fusible(node)
        name = f"mha_{count}"
        inputs = []
        for position in range(3):
            merged = f"{name}_{position}"
            nodes.append(helper.make_node("Transpose", [node.input[position]], [f"{merged}_t"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"{merged}_t", "mha_merge"], [merged]))
            inputs.append(merged)
        if len(node.input) > 3 and node.input[3]:
            mask = node.input[3]
            if mask not in biases:
                biases[mask] = f"{name}_bias" if mask in boolean else mask
                if mask in boolean:
                    constants |= {"mha_kept": np.array(0, np.float32), "mha_masked": np.array(-1e4, np.float32)}
                    nodes.append(helper.make_node("Where", [mask, "mha_kept", "mha_masked"], [biases[mask]]))
            inputs += ["", "", biases[mask]]
        attributes: dict[str, Any] = {"num_heads": n_heads}
        attributes.update({a.name: helper.get_attribute_value(a) for a in node.attribute if a.name == "scale"})
        nodes.append(
            helper.make_node("MultiHeadAttention", inputs, [f"{name}_out"], name=name, domain=MICROSOFT, **attributes)
        )
        nodes.append(helper.make_node("Reshape", [f"{name}_out", "mha_split"], [f"{name}_heads"]))
        nodes.append(helper.make_node("Transpose", [f"{name}_heads"], [node.output[0]], perm=[0, 2, 1, 3]))
        count += 1
    if count:
        graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
        del graph.node[:]
        graph.node.extend(nodes)
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return count


def _check_fusible(node: onnx.NodeProto) -> None:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    attributes.pop("scale", None)
    asked = sorted(name for name, value in attributes.items() if value)
    cached = [name for name in (*node.input[4:], *node.output[1:]) if name]
    if asked or cached:
        raise VerificationError(f"an Attention with {', '.join(asked + cached)} cannot be fused")


def strip_provenance(model: onnx.ModelProto) -> None:
    """Drop what the exporter notes about the machine and the Python source, so that equal weights give equal bytes."""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    for item in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]


def check_signature(part: ExportPart, path: Path) -> None:
    """Compare a file's input and output names, dtypes and axes with the part's.

    An input that the graph does not use may be absent from it.
    Raises: VerificationError: they differ.
    """
    graph = onnx.load(path, load_external_data=False).graph
    for described, found in ((part.inputs, graph.input), (part.outputs, graph.output)):
        values = {value.name: value.type.tensor_type for value in found}
        unknown = set(values) - {tensor.name for tensor in described}
        absent = {tensor.name for tensor in part.outputs} - set(values) if described is part.outputs else set()
        if unknown or absent:
            raise VerificationError(f"{path.name} has unexpected names: {', '.join(sorted(unknown | absent))}")
        for tensor in described:
            if tensor.name not in values:
                continue
            dtype = helper.tensor_dtype_to_np_dtype(values[tensor.name].elem_type).name
            axes = [dim.dim_value or dim.dim_param for dim in values[tensor.name].shape.dim]
            if dtype != tensor.dtype or len(axes) != len(tensor.axes):
                raise VerificationError(f"{path.name}: {tensor.name} is {dtype} {axes}")
            for axis, wanted in zip(axes, tensor.axes, strict=True):
                if isinstance(axis, int) != isinstance(wanted, int) or (isinstance(wanted, int) and axis != wanted):
                    raise VerificationError(f"{path.name}: {tensor.name} has axes {axes}, not {list(tensor.axes)}")


@contextlib.contextmanager
def _attention(module: nn.Module, implementation: str) -> Iterator[None]:
    """Switch transformers models inside a module to an attention implementation, and back."""
    configs = {id(c): c for m in module.modules() if (c := getattr(m, "config", None)) is not None}
    kept = {key: getattr(config, "_attn_implementation", None) for key, config in configs.items()}
    switched = [key for key, value in kept.items() if value is not None]
    for key in switched:
        configs[key]._attn_implementation = implementation
    try:
        yield
    finally:
        for key in switched:
            configs[key]._attn_implementation = kept[key]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress notes and its own deprecation warnings off the terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
