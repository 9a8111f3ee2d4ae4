"""Smoothing of activations before int8, so that one scale per tensor fits all its channels and all its tokens.

Channels: SmoothQuant (Xiao et al. 2023). Each channel of a linear layer's input is divided by a factor and the matching
row of the weights is multiplied by it, which changes nothing in fp32. The original folds the division into the layer
before; here it is an explicit Mul, since in a post-norm encoder the same tensor also feeds the residual branch. Factors
come from activations on real text: a few outlier channels cause a large share of the difference between int8 and fp32.

Tokens: each token is divided by its largest magnitude before a linear layer, and the layer's result multiplied by it.
This turns onnxruntime's scale per tensor into a scale per token (as ZeroQuant: Yao et al. 2022). In a Llama's down
projections the first token is a thousand times larger than the others, which leaves these hardly any of the 256 values
of a common scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mechm_export.graphs.nodes import set_nodes
from mechm_export.precision.onnxruntime_tools import onnxruntime
from mechm_runtime.errors import VerificationError
from mechm_runtime.system.arrays import Arrays, Float32Array

MIN_MAGNITUDE = 1e-5
"""Lower limit of magnitudes, so that a channel that is never active gives no infinite factor."""


def linear_layers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """MatMul nodes whose second input is a constant matrix."""
    matrices = {i.name for i in model.graph.initializer if len(i.dims) == 2}
    return [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in matrices]


def smooth(model: onnx.ModelProto, feeds: Iterable[Arrays], strength: float) -> None:
    """Smooth the channels of every linear layer's input, in place.

    feeds: real inputs of the graph, from which the size of each channel is measured.
    strength: 0 leaves activations as they are, 1 moves their whole range into the weights (SmoothQuant's alpha).
    Raises: VerificationError: no inputs.
    """
    layers: dict[str, list[onnx.NodeProto]] = {}
    for node in linear_layers(model):
        layers.setdefault(node.input[0], []).append(node)
    peaks = channel_peaks(model, list(layers), feeds)
    weights = {i.name: i for i in model.graph.initializer}
    before: dict[str, onnx.NodeProto] = {}
    for number, (source, nodes) in enumerate(layers.items()):
        matrices = {node.input[1]: numpy_helper.to_array(weights[node.input[1]]) for node in nodes}
        rows = np.max([np.abs(matrix).max(1) for matrix in matrices.values()], 0)
        activation_peaks, weight_peaks = (np.maximum(peak, MIN_MAGNITUDE) for peak in (peaks[source], rows))
        factors = activation_peaks**strength / weight_peaks ** (1 - strength)
        factors /= np.exp(np.log(factors).mean())
        name = f"smooth_{number}"
        model.graph.initializer.append(numpy_helper.from_array((1 / factors).astype(np.float32), f"{name}_factors"))
        first = nodes[0].name or nodes[0].output[0]
        before[first] = helper.make_node("Mul", [source, f"{name}_factors"], [f"{name}_out"], name=name)
        for node in nodes:
            matrix = matrices[node.input[1]] * factors[:, None]
            weights[node.input[1]].CopyFrom(numpy_helper.from_array(matrix.astype(np.float32), node.input[1]))
            node.input[0] = f"{name}_out"
    nodes_in_order = []
    for node in model.graph.node:
        if (node.name or node.output[0]) in before:
            nodes_in_order.append(before[node.name or node.output[0]])
        nodes_in_order.append(node)
    set_nodes(model, nodes_in_order)


def scale_tokens(model: onnx.ModelProto) -> None:
    """Divide each token before a linear layer by its largest magnitude, and multiply the result by it, in place."""
    layers = {node.output[0] for node in linear_layers(model)}
    scaled: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.output[0] not in layers:
            nodes.append(node)
            continue
        source, output = node.input[0], node.output[0]
        if source not in scaled:
            name = scaled[source] = f"token_{len(scaled)}"
            nodes += [
                helper.make_node("Abs", [source], [f"{name}_magnitudes"], name=f"{name}_abs"),
                helper.make_node(
                    "ReduceMax", [f"{name}_magnitudes", "token_axis"], [f"{name}_peak"], name=f"{name}_reduce"
                ),
                # Padding tokens may be all zeros.
                helper.make_node("Max", [f"{name}_peak", "token_floor"], [f"{name}_scale"], name=f"{name}_max"),
                helper.make_node("Div", [source, f"{name}_scale"], [f"{name}_scaled"], name=f"{name}_div"),
            ]
        name = scaled[source]
        node.input[0], node.output[0] = f"{name}_scaled", f"{output}_scaled"
        back = helper.make_node("Mul", [f"{output}_scaled", f"{name}_scale"], [output], name=f"{output}_unscaled")
        nodes += [node, back]
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), "token_axis"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(MIN_MAGNITUDE, np.float32), "token_floor"))
    set_nodes(model, nodes)


def channel_peaks(model: onnx.ModelProto, names: list[str], feeds: Iterable[Arrays]) -> dict[str, Float32Array]:
    """Largest magnitude of each channel of the named tensors, by name: float32 (channels,), channels on the last axis.

    A tensor whose last axis has different sizes for different inputs has no channels there: float32 (1,).
    Raises: VerificationError: no inputs.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = [i.name for i in session.get_inputs()]
    peaks: dict[str, Float32Array] = {}
    for feed in feeds:
        values = session.run(names, {name: feed[name] for name in inputs})
        for name, value in zip(names, values, strict=True):
            array = np.atleast_1d(np.asarray(value))
            peak = np.abs(array.reshape(math.prod(array.shape[:-1]), array.shape[-1])).max(0, initial=0)
            if name in peaks and peaks[name].shape != peak.shape:
                peak, peaks[name] = (np.atleast_1d(one.max(initial=0)) for one in (peak, peaks[name]))
            peaks[name] = np.maximum(peaks[name], peak) if name in peaks else peak
    if not peaks:
        raise VerificationError("smoothing needs at least one input to measure: a conversation with words")
    return peaks
