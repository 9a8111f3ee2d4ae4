"""A graph file in a precision below fp32, in plain ONNX that TensorRT reads: fp16, bf16, or static int8."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx.external_data_helper import load_external_data_for_model

from mechm_export.graphs.files import save_graph, strip_provenance
from mechm_export.precision.half import to_half
from mechm_export.precision.static_int8 import quantize_static_int8

LowerPrecision = Literal["fp16", "bf16", "int8"]


def lower_graph(
    source: Path,
    target: Path,
    precision: LowerPrecision,
    feeds: Sequence[Mapping[str, npt.NDArray[np.generic]]] = (),
    kept: Collection[str] = (),
) -> None:
    """Write a graph in a lower precision; inputs and outputs stay float32.

    source: a graph in fp32, for int8 in one file. feeds: real inputs, which int8 takes its scales from. kept: names of
    nodes that stay in fp32.
    Raises: VerificationError: int8 without inputs, an unknown name in `kept`, a graph that is quantized already, or
        nothing to convert.
    """
    if precision == "int8":
        quantize_static_int8(source, target, feeds, kept)
        return
    model = onnx.load(source, load_external_data=False)
    to_half(model, precision, kept, source.parent)
    load_external_data_for_model(model, str(source.parent))  # what stays in fp32 leaves its source
    strip_provenance(model)
    save_graph(model, target)
    onnx.checker.check_model(target, full_check=True)
