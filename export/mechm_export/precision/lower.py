"""Writing a graph file in a precision below fp32, in plain ONNX that TensorRT reads: fp16, bf16, or static int8."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

import onnx
from onnx.external_data_helper import load_external_data_for_model

from mechm_export.graphs.files import save_graph, strip_provenance
from mechm_export.precision.half import to_half
from mechm_export.precision.static_int8 import quantize_static_int8
from mechm_runtime.system.arrays import Arrays

LowerPrecision = Literal["fp16", "bf16", "int8"]


def lower_graph(
    source: Path,
    target: Path,
    precision: LowerPrecision,
    feeds: Sequence[Arrays] = (),
    fp32_nodes: Collection[str] = (),
) -> None:
    """Write a graph in a lower precision; inputs and outputs stay float32.

    source: a graph in fp32, for int8 in one file. feeds: real inputs, from which int8 takes its scales. fp32_nodes:
    names of nodes that stay in fp32.
    Raises: VerificationError: int8 without inputs, an unknown name in `fp32_nodes`, a graph that is quantized already,
        or nothing to convert.
    """
    if precision == "int8":
        quantize_static_int8(source, target, feeds, fp32_nodes)
        return
    model = onnx.load(source, load_external_data=False)
    to_half(model, precision, fp32_nodes, source.parent)
    load_external_data_for_model(model, str(source.parent))  # weights that stay in fp32 move to the new file
    strip_provenance(model)
    save_graph(model, target)
    onnx.checker.check_model(target, full_check=True)
