"""Static symmetric int8 for GPUs: QuantizeLinear and DequantizeLinear around every linear layer and convolution.

TensorRT multiplies in int8 where a product stands between such pairs with zero points of zero; onnxruntime's dynamic
form (`quantize`) is refused by it. Scales come from real inputs: an activation's is its largest magnitude there, a
weight's is one a column. What runs on them is any engine that reads plain ONNX; whether it is good enough is decided
elsewhere. Outlier channels are evened out first (`smoothing`).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from mechm_export.graphs.files import strip_provenance
from mechm_export.precision.half import PRODUCTS
from mechm_export.precision.smoothing import channel_peaks, linear_layers, smooth
from mechm_export.precision.tensor_types import known_types, led_to_exact
from mechm_runtime.errors import VerificationError

Arrays = Mapping[str, npt.NDArray[np.generic]]


class _Feeds(CalibrationDataReader):
    """Real inputs, as onnxruntime's calibration asks for them."""

    def __init__(self, feeds: Sequence[Arrays], names: Collection[str]) -> None:
        self._left = iter([{name: feed[name] for name in names} for feed in feeds])

    def get_next(self) -> Any:
        """The next inputs, None after the last."""
        return next(self._left, None)


SMOOTHING = 0.75
"""What SmoothQuant (Xiao et al. 2023) takes for models with many outliers; 0.5 is for the others."""


def smoothed(source: Path, feeds: Sequence[Arrays]) -> onnx.ModelProto:
    """A graph in fp32 with its outlier channels evened out: what `quantize_static_int8` quantizes.

    Raises: VerificationError: no inputs.
    """
    if not feeds:
        raise VerificationError("int8 needs real inputs to take scales from", hint="name some: --conversations FILE")
    model = onnx.load(source)
    if linear_layers(model):
        smooth(model, feeds, SMOOTHING)
    return model


def quantizable(model: onnx.ModelProto, feeds: Sequence[Arrays]) -> dict[str, float]:
    """The nodes of a smoothed graph that go into int8, in order: name -> the largest magnitude of what goes in.

    Products with constant weights, without those that lead to an index or an angle, and without those whose inputs were
    always zero: nothing tells their scale.
    """
    exact = led_to_exact(model, known_types(model))
    constants = {i.name for i in model.graph.initializer}
    inputs = {
        node.name: node.input[0]
        for node in model.graph.node
        if node.op_type in PRODUCTS
        and node.output[0] not in exact
        and node.input[1] in constants
        and node.input[0] not in constants
    }
    peaks = channel_peaks(model, sorted(set(inputs.values())), feeds) if inputs else {}
    return {name: peak for name, tensor in inputs.items() if (peak := float(peaks[tensor].max())) > 0}


def quantize_static_int8(source: Path, target: Path, feeds: Sequence[Arrays], kept: Collection[str] = ()) -> None:
    """Write a graph's static int8 form.

    source: a graph in fp32, in one file. feeds: real inputs to take scales from. kept: names of nodes that stay
    in fp32.
    Raises: VerificationError: no inputs, a name in `kept` is no node's, or nothing is left to quantize.
    """
    model = smoothed(source, feeds)
    names = {node.name for node in model.graph.node}
    if unknown := sorted(set(kept) - names):
        raise VerificationError(f"the graph has no node {unknown[0]}", hint="mechm export diagnose lists the names")
    chosen = [name for name in quantizable(model, feeds) if name not in kept]
    if not chosen:
        raise VerificationError(f"{source.name} has nothing to quantize")
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # its advice to preprocess is for graphs with unknown shapes
    try:
        with tempfile.TemporaryDirectory(prefix="mechm.") as folder:
            even, made = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
            onnx.save_model(model, even)
            quantize_static(
                even,
                made,
                _Feeds(feeds, [value.name for value in model.graph.input]),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(PRODUCTS),
                nodes_to_quantize=chosen,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                    "MatMulConstBOnly": True,
                    "OpTypesToExcludeOutputQuantization": list(PRODUCTS),
                },
            )
            quantized = onnx.load(made)
    finally:
        logging.disable(disabled)
    strip_provenance(quantized)
    onnx.save_model(quantized, target)
