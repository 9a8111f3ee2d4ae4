"""Convolutions over time as matrix products, which onnxruntime computes in int8 and fuses with their neighbours.

onnxruntime's own integer convolution was five times slower than its fp32 one, for the face network (`parts`). Each
output of a convolution reads as many neighbouring inputs as its kernel is wide: slices gather those side by side, and
one matrix product does the rest (im2col). In Whisper-tiny's int8 the two convolutions took 15 % of the time in fp32,
and 6 % as products.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mechm_export.graphs.nodes import drop_unused_constants, set_nodes

END = np.iinfo(np.int64).max
MIN_CHANNELS = 64
"""Fewest input channels of a convolution that is rewritten. With fewer, as over the samples of a waveform, the product
is too small to gain from int8."""


def convert_convolutions(model: onnx.ModelProto, fp32_nodes: Collection[str] = ()) -> int:
    """Rewrite a graph's convolutions over one axis in place; returns the number of rewrites.

    fp32_nodes: names of nodes that stay as they are.
    Convolutions with groups or dilation, with computed weights, or with few input channels stay too.
    """
    graph = model.graph
    weights = {i.name: i for i in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    count = 0
    for node in graph.node:
        if node.name in fp32_nodes or not _is_convertible(node, weights):
            nodes.append(node)
            continue
        name = f"unfolded_{count}"
        kernel = numpy_helper.to_array(weights[node.input[1]])  # (out, in, kernel)
        constants = {f"{name}_weights": kernel.transpose(2, 1, 0).reshape(-1, len(kernel))}
        attributes: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        before, after = attributes.get("pads", (0, 0))
        (stride,) = attributes.get("strides", (1,))
        steps = [helper.make_node("Transpose", [node.input[0]], [f"{name}_rows"], name=f"{name}_t", perm=[0, 2, 1])]
        rows = f"{name}_rows"
        if before or after:
            constants[f"{name}_pads"] = np.array([0, before, 0, 0, after, 0], np.int64)
            steps.append(helper.make_node("Pad", [rows, f"{name}_pads"], [f"{name}_padded"], name=f"{name}_pad"))
            rows = f"{name}_padded"
        size = kernel.shape[2]
        windows = [f"{name}_{position}" for position in range(size)]
        for position, output in enumerate(windows):
            end = position + 1 - size or END
            for what, value in (("start", position), ("end", end), ("axis", 1), ("step", stride)):
                constants[f"{output}_{what}"] = np.array([value], np.int64)
            inputs = [rows, *(f"{output}_{what}" for what in ("start", "end", "axis", "step"))]
            steps.append(helper.make_node("Slice", inputs, [output], name=output))
        steps.append(helper.make_node("Concat", windows, [f"{name}_seen"], name=f"{name}_concat", axis=2))
        product = f"{name}_product"
        steps.append(helper.make_node("MatMul", [f"{name}_seen", f"{name}_weights"], [product], name=name))
        if len(node.input) > 2:
            steps.append(helper.make_node("Add", [product, node.input[2]], [f"{name}_sum"], name=f"{name}_bias"))
            product = f"{name}_sum"
        steps.append(helper.make_node("Transpose", [product], [node.output[0]], name=f"{name}_back", perm=[0, 2, 1]))
        graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(v), k) for k, v in constants.items())
        nodes += steps
        count += 1
    if count:
        set_nodes(model, nodes)
        drop_unused_constants(model)
    return count


def _is_convertible(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type != "Conv" or node.input[1] not in weights:
        return False
    shape = weights[node.input[1]].dims
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    plain = attributes.get("group", 1) == 1 and set(attributes.get("dilations", [1])) == {1}
    plain = plain and attributes.get("auto_pad", b"NOTSET") == b"NOTSET"
    return len(shape) == 3 and plain and shape[1] >= MIN_CHANNELS
