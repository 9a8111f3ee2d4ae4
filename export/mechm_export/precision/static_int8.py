"""Static symmetric int8: QuantizeLinear and DequantizeLinear around every linear layer and convolution.

TensorRT multiplies in int8 where a product stands between such pairs with zero points of zero; it refuses onnxruntime's
dynamic form (`dynamic_int8`). Scales come from real inputs: an activation has one scale, its largest magnitude there,
and a weight one scale per column. Outlier channels are smoothed first (`smoothing`). Any engine that reads plain ONNX
can run the graphs; whether they are good enough is decided by `gate`, not here.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import onnx

from mechm_export.graphs.files import strip_provenance
from mechm_export.precision.half import PRODUCTS
from mechm_export.precision.onnxruntime_tools import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from mechm_export.precision.smoothing import channel_peaks, linear_layers, smooth
from mechm_export.precision.tensor_types import known_types, precision_sensitive
from mechm_runtime.errors import VerificationError
from mechm_runtime.system.arrays import Arrays


class _CalibrationFeeds(CalibrationDataReader):
    """Real inputs behind the interface of onnxruntime's calibration."""

    def __init__(self, feeds: Sequence[Arrays], names: Collection[str]) -> None:
        self._remaining = iter([{name: feed[name] for name in names} for feed in feeds])

    def get_next(self) -> Any:
        """Return the next inputs, None after the last."""
        return next(self._remaining, None)


SMOOTHING = 0.75
"""Strength of smoothing: SmoothQuant (Xiao et al. 2023) takes 0.75 for models with many outliers and 0.5 for others."""


def load_smoothed(source: Path, feeds: Sequence[Arrays]) -> onnx.ModelProto:
    """Load a graph in fp32 and smooth its outlier channels; this is the graph that `quantize_static_int8` quantizes.

    Raises: VerificationError: no inputs.
    """
    if not feeds:
        raise VerificationError("int8 needs real inputs to take scales from", hint="give some: --conversations FILE")
    model = onnx.load(source)
    if linear_layers(model):
        smooth(model, feeds, SMOOTHING)
    return model


def quantizable_nodes(model: onnx.ModelProto, feeds: Sequence[Arrays]) -> dict[str, float]:
    """The nodes of a smoothed graph that become int8, in order: name -> largest magnitude of their input.

    These are products with constant weights. Left out are those whose result becomes an index or an angle
    (`tensor_types.precision_sensitive`), and those whose inputs were always zero: their scale is unknown.
    """
    sensitive = precision_sensitive(model, known_types(model))
    constants = {i.name for i in model.graph.initializer}
    inputs = {
        node.name: node.input[0]
        for node in model.graph.node
        if node.op_type in PRODUCTS
        and node.output[0] not in sensitive
        and node.input[1] in constants
        and node.input[0] not in constants
    }
    peaks = channel_peaks(model, sorted(set(inputs.values())), feeds) if inputs else {}
    return {name: peak for name, tensor in inputs.items() if (peak := float(peaks[tensor].max())) > 0}


def quantize_static_int8(source: Path, target: Path, feeds: Sequence[Arrays], fp32_nodes: Collection[str] = ()) -> None:
    """Write a graph's static int8 form.

    source: a graph in fp32, in one file. feeds: real inputs to take scales from. fp32_nodes: names of nodes that stay
    in fp32.
    Raises: VerificationError: no inputs, `fp32_nodes` names an unknown node, or nothing is left to quantize.
    """
    model = load_smoothed(source, feeds)
    names = {node.name for node in model.graph.node}
    if unknown := sorted(set(fp32_nodes) - names):
        raise VerificationError(f"the graph has no node {unknown[0]}", hint="mechm export diagnose lists the names")
    chosen = [name for name in quantizable_nodes(model, feeds) if name not in fp32_nodes]
    if not chosen:
        raise VerificationError(f"{source.name} has nothing to quantize")
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # onnxruntime advises preprocessing, which is for graphs with unknown shapes
    try:
        with tempfile.TemporaryDirectory(prefix="mechm.") as folder:
            smooth_fp32, int8 = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
            onnx.save_model(model, smooth_fp32)
            quantize_static(
                smooth_fp32,
                int8,
                _CalibrationFeeds(feeds, [value.name for value in model.graph.input]),
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
            quantized = onnx.load(int8)
    finally:
        logging.disable(disabled)
    strip_provenance(quantized)
    onnx.save_model(quantized, target)
