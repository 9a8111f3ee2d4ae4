"""Even out activations before they become int8: one scale a tensor then serves all its channels, and all its tokens.

Channels: SmoothQuant (Xiao et al. 2023): each channel of a linear layer's input is divided by a factor and the weights'
row is multiplied by it, which changes nothing in fp32. Where the original folds the division into the layer before,
here it is an explicit Mul, since in a post-norm encoder the same tensor also feeds the residual branch. Factors come
from activations on real text; a large share of the difference between int8 and fp32 is a few such channels.

Tokens: each is divided by its largest magnitude before a linear layer, and the layer's result multiplied by it, which
makes of onnxruntime's scale a tensor one a token (as ZeroQuant: Yao et al. 2022). A Llama's first token is a thousand
times larger than the others in its down projections, and takes all of their 256 values for itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from mechm_runtime.errors import VerificationError

SMALLEST = 1e-5
"""Floor of magnitudes, so that a channel that is never active gives no infinite factor."""


def linear_layers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """MatMul nodes whose second input is a constant matrix."""
    matrices = {i.name for i in model.graph.initializer if len(i.dims) == 2}
    return [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in matrices]


def smooth(model: onnx.ModelProto, feeds: Iterable[Mapping[str, npt.NDArray[np.generic]]], strength: float) -> None:
    """Rewrite every linear layer of a graph in place.

    feeds: real inputs of the graph, to see which channels are large.
    strength: 0 leaves activations as they are, 1 moves all of their range into the weights (SmoothQuant's alpha).
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
        factors = np.maximum(peaks[source], SMALLEST) ** strength / np.maximum(rows, SMALLEST) ** (1 - strength)
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
    """Divide the inputs of every linear layer of a graph by their rows' largest magnitudes, in place."""
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
                # Padding may be all zeros.
                helper.make_node("Max", [f"{name}_peak", "token_floor"], [f"{name}_scale"], name=f"{name}_max"),
                helper.make_node("Div", [source, f"{name}_scale"], [f"{name}_scaled"], name=f"{name}_div"),
            ]
        name = scaled[source]
        node.input[0], node.output[0] = f"{name}_scaled", f"{output}_scaled"
        back = helper.make_node("Mul", [f"{output}_scaled", f"{name}_scale"], [output], name=f"{output}_unscaled")
        nodes += [node, back]
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), "token_axis"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(SMALLEST, np.float32), "token_floor"))
    set_nodes(model, nodes)


def set_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replace a graph's nodes, some of which may be its own."""
    # Copies, since a graph's own nodes go with its list.
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def channel_peaks(
    model: onnx.ModelProto, names: list[str], feeds: Iterable[Mapping[str, npt.NDArray[np.generic]]]
) -> dict[str, npt.NDArray[np.float32]]:
    """Largest magnitude of each channel of the named tensors, by name: float32 (channels,), channels on the last axis.

    A tensor whose last axis differs from input to input has no channels there: float32 (1,).
    Raises: VerificationError: no inputs.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = [i.name for i in session.get_inputs()]
    peaks: dict[str, npt.NDArray[np.float32]] = {}
    for feed in feeds:
        values = session.run(names, {name: feed[name] for name in inputs})
        for name, value in zip(names, values, strict=True):
            array = np.atleast_1d(np.asarray(value))
            peak = np.abs(array.reshape(math.prod(array.shape[:-1]), array.shape[-1])).max(0, initial=0)
            if name in peaks and peaks[name].shape != peak.shape:
                peak, peaks[name] = (np.atleast_1d(one.max(initial=0)) for one in (peak, peaks[name]))
            peaks[name] = np.maximum(peaks[name], peak) if name in peaks else peak
    if not peaks:
        raise VerificationError("smoothing needs at least one input to look at: a conversation with words")
    return peaks
