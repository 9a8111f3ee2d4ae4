"""Converts the expression network in a Keras HDF5 file, without tensorflow.

The file contains its graph as JSON. `convert` maps the weights to `ExpressionNetwork` by name. The check runs the
file's graph layer by layer with a small numpy interpreter that is independent of the torch module, so that a wrong
mapping, padding or class order shows as a difference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mechm.model.expression import ExpressionConfig, ExpressionNetwork
from mechm.weights.check import Check, largest_difference, require_close
from mechm.weights.untyped import import_untyped
from mechm_runtime.errors import WeightsError
from mechm_runtime.types import EMOTIONS

FER_LABELS = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")
"""The file's classes (FER-2013: angry, disgust, fear, happy, sad, surprise, neutral) under this library's names."""

CLASS_ORDER = tuple(FER_LABELS.index(emotion) for emotion in EMOTIONS)
"""Index of the file's class for each of this library's seven logits."""

ATOL = 1e-4  # float32 sums in another order; 2e-6 was measured on the shipped weights

Array = NDArray[np.float32]
LayerWeights = dict[str, Array]


def convert(source: Path, target: Path) -> Check:
    """Convert the one `*.hdf5` file in `source` into the folder `target`.

    Raises: WeightsError: not the supported mini-Xception. VerificationError: outputs differ.
    """
    layers, weights = read_keras(next(iter(sorted(source.glob("*.hdf5")))))
    network = build_network(layers, weights)
    faces = np.random.default_rng(0).uniform(-1, 1, (4, *input_shape(layers))).astype(np.float32)
    expected = run_keras_graph(layers, weights, faces)[:, list(CLASS_ORDER)]
    network.save_pretrained(target)
    with torch.no_grad():
        logits = ExpressionNetwork.from_pretrained(target)(torch.from_numpy(faces.transpose(0, 3, 1, 2).copy()))
    difference = largest_difference("expression logits", expected, logits.numpy())
    return require_close("expression", "the Keras graph in numpy", difference, ATOL)


def read_keras(path: Path) -> tuple[list[dict[str, Any]], dict[str, LayerWeights]]:
    """Read the graph's layers in the file's (topological) order, and their arrays by layer and parameter name.

    Raises: WeightsError: not a Keras functional model.
    """
    h5py = import_untyped("h5py")
    try:
        with h5py.File(path, "r") as file:
            layers: list[dict[str, Any]] = json.loads(file.attrs["model_config"])["config"]["layers"]
            weights: dict[str, LayerWeights] = {}
            for layer in layers:
                group = file["model_weights"][layer["name"]]
                names = [name.decode() if isinstance(name, bytes) else name for name in group.attrs["weight_names"]]
                weights[layer["name"]] = {
                    name.rsplit("/", 1)[-1].split(":")[0]: np.asarray(group[name], np.float32) for name in names
                }
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise WeightsError(f"{path.name} is not a Keras functional model: {error}") from error
    return layers, weights


def input_shape(layers: list[dict[str, Any]]) -> tuple[int, int, int]:
    """Return (height, width, channels) of the graph's input."""
    height, width, channels = layers[0]["config"]["batch_input_shape"][1:]
    return int(height), int(width), int(channels)


def build_network(layers: list[dict[str, Any]], weights: Mapping[str, LayerWeights]) -> ExpressionNetwork:
    """Build the torch network with the file's weights, its classes permuted to the order of `EMOTIONS`.

    Raises: WeightsError: the graph is not a mini-Xception.
    """
    try:
        names = {kind: [layer["name"] for layer in layers if layer["class_name"] == kind] for kind in _KERNELS}
        convs, separables = names["Conv2D"], names["SeparableConv2D"]
        norm_of = {
            layer["inbound_nodes"][0][0][0]: layer["name"]
            for layer in layers
            if layer["class_name"] == "BatchNormalization"
        }
        n_blocks = len(separables) // 2
        eps = next(layer["config"]["epsilon"] for layer in layers if layer["class_name"] == "BatchNormalization")
        config = ExpressionConfig(
            image_size=input_shape(layers)[0],
            stem_channels=weights[convs[0]]["kernel"].shape[3],
            block_channels=tuple(weights[name]["pointwise_kernel"].shape[3] for name in separables[1::2]),
            batch_norm_eps=eps,
        )
        network = ExpressionNetwork(config).eval()
        _set_conv(network.stem_conv1, weights[convs[0]])
        _set_norm(network.stem_norm1, weights[norm_of[convs[0]]])
        _set_conv(network.stem_conv2, weights[convs[1]])
        _set_norm(network.stem_norm2, weights[norm_of[convs[1]]])
        for i, block in enumerate(network.residual_blocks()):
            halves = ((block.conv1, block.norm1, separables[2 * i]), (block.conv2, block.norm2, separables[2 * i + 1]))
            for separable, norm, name in halves:
                _set(separable.depthwise, "weight", weights[name]["depthwise_kernel"].transpose(2, 3, 0, 1))
                _set(separable.pointwise, "weight", weights[name]["pointwise_kernel"].transpose(3, 2, 0, 1))
                _set_norm(norm, weights[norm_of[name]])
            _set_conv(block.shortcut_conv, weights[convs[2 + i]])
            _set_norm(block.shortcut_norm, weights[norm_of[convs[2 + i]]])
        head = weights[convs[2 + n_blocks]]
        order = list(CLASS_ORDER)
        _set(network.head, "weight", head["kernel"].transpose(3, 2, 0, 1)[order])
        _set(network.head, "bias", head["bias"][order])
    except (IndexError, KeyError, StopIteration, ValueError) as error:
        raise WeightsError(f"the Keras graph is not the expression network this library knows: {error}") from error
    return network


def _set(module: nn.Module, name: str, values: Array) -> None:
    tensor = getattr(module, name)
    if tuple(tensor.shape) != values.shape:
        raise ValueError(f"{name} of shape {values.shape} instead of {tuple(tensor.shape)}")
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(values)))


def _set_conv(conv: nn.Module, weights: LayerWeights) -> None:
    # Keras stores (height, width, in, out), torch (out, in, height, width).
    _set(conv, "weight", weights["kernel"].transpose(3, 2, 0, 1))


def _set_norm(norm: nn.Module, weights: LayerWeights) -> None:
    for name, keras_name in (
        ("weight", "gamma"),
        ("bias", "beta"),
        ("running_mean", "moving_mean"),
        ("running_var", "moving_variance"),
    ):
        _set(norm, name, weights[keras_name])


# --- The reference: Keras' layers in numpy, channels last ---


def run_keras_graph(layers: list[dict[str, Any]], weights: Mapping[str, LayerWeights], images: Array) -> Array:
    """Run the file's graph up to its final softmax.

    images: float32 (batch, height, width, channels).
    Returns: float32 (batch, classes) logits in the file's own class order.
    Raises: WeightsError: a layer that this interpreter does not support.
    """
    outputs: dict[str, Array] = {layers[0]["name"]: images}
    result = images
    for layer in layers[1:]:
        kernel = _KERNELS.get(layer["class_name"])
        if kernel is None or layer["config"].get("data_format", "channels_last") != "channels_last":
            raise WeightsError(f"unknown Keras layer {layer['class_name']} ({layer['name']})")
        inputs = [outputs[node[0]] for node in layer["inbound_nodes"][0]]
        result = outputs[layer["name"]] = kernel(inputs, layer["config"], weights[layer["name"]])
    return result


def _windows(x: Array, size: int, stride: int, padding: str, fill: float) -> Array:
    """Cut windows: (batch, height, width, channels) -> (batch, out_height, out_width, channels, size, size)."""
    if padding == "same":
        pads = []
        for length in x.shape[1:3]:
            total = max((-(-length // stride) - 1) * stride + size - length, 0)
            pads.append((total // 2, total - total // 2))
        x = np.pad(x, ((0, 0), pads[0], pads[1], (0, 0)), constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]


def _conv(inputs: list[Array], config: Mapping[str, Any], weights: LayerWeights) -> Array:
    windows = _windows(inputs[0], config["kernel_size"][0], config["strides"][0], config["padding"], 0.0)
    out = np.einsum("nhwcij,ijco->nhwo", windows, weights["kernel"], optimize=True)
    return np.asarray(out + weights["bias"] if "bias" in weights else out)


def _separable_conv(inputs: list[Array], config: Mapping[str, Any], weights: LayerWeights) -> Array:
    windows = _windows(inputs[0], config["kernel_size"][0], config["strides"][0], config["padding"], 0.0)
    depthwise = np.einsum("nhwcij,ijc->nhwc", windows, weights["depthwise_kernel"][..., 0], optimize=True)
    return np.asarray(depthwise @ weights["pointwise_kernel"][0, 0])


def _batch_norm(inputs: list[Array], config: Mapping[str, Any], weights: LayerWeights) -> Array:
    scale = weights["gamma"] / np.sqrt(weights["moving_variance"] + np.float32(config["epsilon"]))
    return np.asarray((inputs[0] - weights["moving_mean"]) * scale + weights["beta"])


def _max_pool(inputs: list[Array], config: Mapping[str, Any], weights: LayerWeights) -> Array:  # noqa: ARG001
    windows = _windows(inputs[0], config["pool_size"][0], config["strides"][0], config["padding"], -np.inf)
    return np.asarray(windows.max((-2, -1)))


def _activation(inputs: list[Array], config: Mapping[str, Any], weights: LayerWeights) -> Array:  # noqa: ARG001
    if config["activation"] == "relu":
        return np.maximum(inputs[0], 0)
    if config["activation"] == "softmax":
        # Logits are compared, since softmax would hide differences of unlikely classes.
        return inputs[0]
    raise WeightsError(f"unknown Keras activation {config['activation']}")


def _add(inputs: list[Array], config: Mapping[str, Any], weights: LayerWeights) -> Array:  # noqa: ARG001
    return np.asarray(inputs[0] + inputs[1])


def _mean(inputs: list[Array], config: Mapping[str, Any], weights: LayerWeights) -> Array:  # noqa: ARG001
    return np.asarray(inputs[0].mean((1, 2)))


_KERNELS = {
    "Conv2D": _conv,
    "SeparableConv2D": _separable_conv,
    "BatchNormalization": _batch_norm,
    "MaxPooling2D": _max_pool,
    "Activation": _activation,
    "Add": _add,
    "GlobalAveragePooling2D": _mean,
}
