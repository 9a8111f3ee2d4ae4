"""Convolutions over time as matrix products, which onnxruntime multiplies in int8 and fuses with what is around them.

Its own integer convolution was five times slower than the one in fp32, for the face network (`parts`). Each output sees
as many inputs side by side as its kernel is wide: slices gather those, and one product does the rest. In Whisper-tiny's
int8 the two convolutions in fp32 were 15 % of the time, and as products 6 %.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mechm_export.precision.half import drop_unused_constants
from mechm_export.precision.smoothing import set_nodes

END = np.iinfo(np.int64).max
FEWEST_CHANNELS = 64
"""Of the input: below, as over the samples of a waveform, there is too little to multiply."""


def unfold_convolutions(model: onnx.ModelProto, kept: Collection[str] = ()) -> int:
    """Rewrite a graph's convolutions over one axis in place; returns how many there were.

    kept: names of nodes that stay as they are.
    Left are those with groups or dilation, with weights that are computed, and with few input channels.
    """
    graph = model.graph
    weights = {i.name: i for i in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    count = 0
    for node in graph.node:
        if node.name in kept or not _unfolds(node, weights):
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
        seen = [f"{name}_{position}" for position in range(size)]
        for position, output in enumerate(seen):
            end = position + 1 - size or END
            for what, value in (("start", position), ("end", end), ("axis", 1), ("step", stride)):
                constants[f"{output}_{what}"] = np.array([value], np.int64)
            inputs = [rows, *(f"{output}_{what}" for what in ("start", "end", "axis", "step"))]
            steps.append(helper.make_node("Slice", inputs, [output], name=output))
        steps.append(helper.make_node("Concat", seen, [f"{name}_seen"], name=f"{name}_concat", axis=2))
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


def _unfolds(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type != "Conv" or node.input[1] not in weights:
        return False
    shape = weights[node.input[1]].dims
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    plain = attributes.get("group", 1) == 1 and set(attributes.get("dilations", [1])) == {1}
    plain = plain and attributes.get("auto_pad", b"NOTSET") == b"NOTSET"
    return len(shape) == 3 and plain and shape[1] >= FEWEST_CHANNELS
