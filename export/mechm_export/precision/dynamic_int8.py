"""Dynamic int8 for onnxruntime on CPU, and int8 weights alone for engines that read plain ONNX.

In dynamic int8, weights are 8-bit integers and activations are quantized at run time. Each part has its own recipe,
found by measuring (`benchmarks/int8_recipes.py`). Linear layers take signed weights with one scale per channel, since
unsigned ones were slower (DESIGN.md section 7); convolutions take unsigned ones, the only form for which onnxruntime's
integer convolution has a CPU kernel. Whether the result is good enough is decided by `gate`, not here.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from mechm_export.graphs.files import has_large_weights, save_graph, strip_provenance
from mechm_export.graphs.nodes import set_nodes
from mechm_export.graphs.part import Int8Recipe
from mechm_export.precision.conv_to_matmul import convert_convolutions
from mechm_export.precision.onnxruntime_tools import QuantType, quantize_dynamic
from mechm_export.precision.smoothing import linear_layers, scale_tokens, smooth
from mechm_runtime.errors import VerificationError
from mechm_runtime.system.arrays import Arrays, Float32Array

MIN_SCALE = 1e-12
"""Scale of values that are all zeros."""


def quantize_int8(
    source: Path,
    target: Path,
    recipe: Int8Recipe,
    feeds: Sequence[Arrays] = (),
    fp32_nodes: Collection[str] = (),
) -> None:
    """Write a graph's dynamic int8 form.

    source: a graph; where the recipe smooths, its weights have to be in the file. feeds: real inputs, for smoothing.
    fp32_nodes: names of nodes that stay in fp32, in addition to those of the recipe.
    Raises: VerificationError: there was nothing to quantize.
    """
    model = onnx.load(source)
    if recipe.conv_to_matmul:
        convert_convolutions(model, fp32_nodes)
    if recipe.smoothing:
        smooth(model, feeds, recipe.smoothing)
    if recipe.token_scales:
        scale_tokens(model)
    if recipe.embeddings:
        quantize_embeddings(model)
    excluded = [*fp32_nodes, *(down_projections(model) if recipe.keep_down_projections else [])]
    save_graph(model, target)
    convolutions = "Conv" in recipe.operators
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # onnxruntime advises preprocessing, which is for graphs with unknown shapes
    try:
        quantize_dynamic(
            target,
            target,
            per_channel=not convolutions,
            weight_type=QuantType.QUInt8 if convolutions else QuantType.QInt8,
            op_types_to_quantize=list(recipe.operators),
            nodes_to_exclude=excluded,
            use_external_data_format=has_large_weights(model),
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        logging.disable(disabled)
    model = onnx.load(target)
    if not any(node.op_type in ("MatMulInteger", "ConvInteger") for node in model.graph.node):
        raise VerificationError(f"{source.name} has no {' or '.join(recipe.operators)} with constant weights")
    strip_provenance(model)
    save_graph(model, target)


def quantize_weights(source: Path, target: Path, recipe: Int8Recipe, feeds: Sequence[Arrays] = ()) -> None:
    """Write a graph whose linear layers have int8 weights: one scale per column, and a DequantizeLinear behind each.

    This is the scheme WEIGHT_ONLY_INT8. The graph is plain ONNX: an engine may convert the weights back to float, or
    quantize activations at run time and multiply in int8. Such engines choose one scale per token by themselves, which
    `quantize_int8` has to add for onnxruntime.
    source: a graph in one file. feeds: real inputs, for recipes that smooth.
    Raises: VerificationError: there was nothing to quantize.
    """
    model = onnx.load(source)
    if recipe.smoothing:
        smooth(model, feeds, recipe.smoothing)
    if recipe.embeddings:
        quantize_embeddings(model)
    graph = model.graph
    weights = {i.name: i for i in graph.initializer}
    names = sorted({node.input[1] for node in linear_layers(model)})
    if not names:
        raise VerificationError(f"{source.name} has no MatMul with constant weights")
    widened = []
    for name in names:
        rounded, scale = quantize_rows(numpy_helper.to_array(weights[name]).T)
        graph.initializer.remove(weights[name])
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(rounded.T), f"{name}_int8"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        inputs = [f"{name}_int8", f"{name}_scale"]
        widened.append(helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}_dequantize", axis=1))
    set_nodes(model, [*widened, *graph.node])
    strip_provenance(model)
    onnx.save_model(model, target)


def quantize_rows(rows: Float32Array) -> tuple[npt.NDArray[np.int8], Float32Array]:
    """Quantize rows, float32 (n, m), to int8 in [-127, 127]; also returns one scale per row, float32 (n,)."""
    scale = np.maximum(np.abs(rows).max(1) / 127, MIN_SCALE).astype(np.float32)
    return np.clip(np.round(rows / scale[:, None]), -127, 127).astype(np.int8), scale


def matching_layers(source: onnx.ModelProto, names: Collection[str], other: onnx.ModelProto) -> list[str]:
    """Names of the nodes in `other` that have the same weights as the named nodes of `source`.

    Both are graphs of the same module. The exporter numbers nodes, so another opset gives other names.
    Raises: VerificationError: a name is not a layer with weights, or the other graph has no such weights.
    """

    def weights_of(model: onnx.ModelProto) -> dict[str, bytes]:
        constants = {i.name: i for i in model.graph.initializer}
        return {
            node.name: numpy_helper.to_array(constants[node.input[1]]).tobytes()
            for node in model.graph.node
            if len(node.input) > 1 and node.input[1] in constants and node.op_type in ("MatMul", "Gemm", "Conv")
        }

    here, there = weights_of(source), weights_of(other)
    found = []
    for name in names:
        if name not in here:
            raise VerificationError(f"{name} is no layer with weights", hint="mechm export diagnose lists those")
        same = [node for node, weights in there.items() if weights == here[name]]
        if not same:
            raise VerificationError(f"the int8 graph has no layer with the weights of {name}")
        found += same
    return found


def down_projections(model: onnx.ModelProto) -> list[str]:
    """Names of the linear layers that read the widest states and narrow them: the second layer of each MLP.

    A Llama's key and value projections narrow their input too, but not from the MLP's width.
    """
    shapes = {i.name: tuple(i.dims) for i in model.graph.initializer}
    layers = {node.name: shapes[node.input[1]] for node in linear_layers(model)}
    widest = max((rows for rows, _ in layers.values()), default=0)
    return [name for name, (rows, columns) in layers.items() if rows == widest > columns]


def quantize_embeddings(model: onnx.ModelProto) -> None:
    """Replace the largest embedding table by int8 rows with one scale per row, in place.

    One scale for the whole table, as onnxruntime's tool writes it, changed 12 times as many labels.
    """
    tables = {i.name: i for i in model.graph.initializer if len(i.dims) == 2}
    lookups = [node for node in model.graph.node if node.op_type == "Gather" and node.input[0] in tables]
    if not lookups:
        raise VerificationError("the graph has no embedding table to quantize")
    lookup = max(lookups, key=lambda node: tables[node.input[0]].dims[0])
    table = tables[lookup.input[0]]
    rows, scale = quantize_rows(numpy_helper.to_array(table))
    graph, indices, output = model.graph, lookup.input[1], lookup.output[0]
    graph.initializer.remove(table)
    graph.initializer.append(numpy_helper.from_array(rows, "embedding_rows"))
    graph.initializer.append(numpy_helper.from_array(scale[:, None], "embedding_scale"))
    replacement = [
        helper.make_node("Gather", ["embedding_rows", indices], ["embedding_int8"], name="embedding_gather"),
        helper.make_node(
            "Cast", ["embedding_int8"], ["embedding_float"], name="embedding_cast", to=onnx.TensorProto.FLOAT
        ),
        helper.make_node("Gather", ["embedding_scale", indices], ["embedding_factor"], name="embedding_gather_scale"),
        helper.make_node("Mul", ["embedding_float", "embedding_factor"], [output], name="embedding_scaled"),
    ]
    set_nodes(model, [n for node in graph.node for n in (replacement if node.output[0] == output else [node])])
