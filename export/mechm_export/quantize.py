"""Dynamic int8 for onnxruntime on CPU: weights as 8-bit integers, activations quantized as they come.

Linear layers take signed weights per channel, since unsigned ones were slower (DESIGN.md section 7); convolutions take
unsigned ones, the only form whose kernel is exact on every CPU. Which operators a part quantizes is said by the part.
Whether the result is good enough is not decided here (`gate`).
"""

from __future__ import annotations

import logging
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from mechm_export.onnx_graph import strip_provenance
from mechm_runtime.errors import VerificationError


def quantize_int8(source: Path, target: Path, operators: tuple[str, ...]) -> None:
    """Write a graph's dynamic int8 form.

    source: a graph in one file. operators: ONNX operator types whose constant weights are quantized.
    Raises: VerificationError: there was nothing to quantize.
    """
    convolutions = "Conv" in operators
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # its advice to preprocess is for graphs with unknown shapes
    try:
        quantize_dynamic(
            source,
            target,
            per_channel=not convolutions,
            weight_type=QuantType.QUInt8 if convolutions else QuantType.QInt8,
            op_types_to_quantize=list(operators),
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        logging.disable(disabled)
    model = onnx.load(target)
    quantized = {"MatMulInteger", "ConvInteger", "DequantizeLinear"}
    if not any(node.op_type in quantized for node in model.graph.node):
        raise VerificationError(f"{source.name} has no {' or '.join(operators)} with constant weights to quantize")
    strip_provenance(model)
    onnx.save_model(model, target)
