"""Comparing the inputs and outputs of a graph file with those of the part it was exported from."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import helper

from mechm_export.graphs.part import ExportPart
from mechm_runtime.errors import VerificationError


def check_signature(part: ExportPart, path: Path) -> None:
    """Compare a file's input and output names, dtypes and axes with the part's.

    An input that the graph does not use may be absent from it.
    Raises: VerificationError: they differ.
    """
    graph = onnx.load(path, load_external_data=False).graph
    for described, found in ((part.inputs, graph.input), (part.outputs, graph.output)):
        values = {value.name: value.type.tensor_type for value in found}
        unknown = set(values) - {tensor.name for tensor in described}
        absent = {tensor.name for tensor in part.outputs} - set(values) if described is part.outputs else set()
        if unknown or absent:
            raise VerificationError(f"{path.name} has unexpected names: {', '.join(sorted(unknown | absent))}")
        for tensor in described:
            if tensor.name not in values:
                continue
            dtype = helper.tensor_dtype_to_np_dtype(values[tensor.name].elem_type).name
            axes = [dim.dim_value or dim.dim_param for dim in values[tensor.name].shape.dim]
            if dtype != tensor.dtype or len(axes) != len(tensor.axes):
                raise VerificationError(f"{path.name}: {tensor.name} is {dtype} {axes}")
            for axis, wanted in zip(axes, tensor.axes, strict=True):
                if isinstance(axis, int) != isinstance(wanted, int) or (isinstance(wanted, int) and axis != wanted):
                    raise VerificationError(f"{path.name}: {tensor.name} has axes {axes}, not {list(tensor.axes)}")
