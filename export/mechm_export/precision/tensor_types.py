"""Element types of a graph's tensors, and the tensors whose rounding would change an index or an angle.

Weights are not read, so a graph of gigabytes costs nothing here, with its weights in the file or beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
from onnx import TensorProto, helper

from mechm_runtime.errors import VerificationError

MAX_SHAPE_ELEMENTS = 1024
"""Most elements of a constant that may be a shape, whose values shape inference reads."""

ERROR_AMPLIFYING = frozenset(("Sin", "Cos", "Floor", "Ceil", "Round", "Mod"))
"""Operators that turn a small difference into a large one: on positions of a rotary embedding, or on buckets of a
relative position."""


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of a graph's tensors, as far as they are known: name -> number of the type in TensorProto."""
    graph = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {constant.name: constant.data_type for constant in model.graph.initializer}


def known_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of all of a graph's tensors: name -> number of the type in TensorProto.

    Raises: VerificationError: the type of a tensor is not known.
    """
    types = element_types(model)
    for node in model.graph.node:
        if unknown := [name for name in node.output if name and not types.get(name)]:
            raise VerificationError(f"the type of {unknown[0]} ({node.op_type}) is not known")
    return types


def precision_sensitive(model: onnx.ModelProto, types: Mapping[str, int]) -> set[str]:
    """Names of the float tensors from which an operator of ERROR_AMPLIFYING, an integer or a boolean is computed.

    types: of every tensor, by name (`known_types`).
    """
    floats = {name for name, kind in types.items() if is_float(kind)}
    sensitive: set[str] = set()
    for node in reversed(model.graph.node):
        to_integer = node.op_type == "Cast" and not is_float(types[node.output[0]])
        if node.op_type in ERROR_AMPLIFYING or to_integer or sensitive.intersection(node.output):
            sensitive.update(floats.intersection(node.input))
    return sensitive


def is_float(element_type: int) -> bool:
    """Whether a type is a floating-point one, of any width."""
    kind = helper.tensor_dtype_to_np_dtype(element_type)
    return kind.kind == "f" or kind.name.startswith(("bfloat", "float"))


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a graph with inputs in place of large constants, since shape inference copies everything it is given."""
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.functions.extend(model.functions)
    graph = model.graph
    light.graph.name = graph.name
    light.graph.node.extend(graph.node)
    light.graph.input.extend(graph.input)
    light.graph.output.extend(graph.output)
    light.graph.value_info.extend(graph.value_info)
    for constant in graph.initializer:
        outside = constant.data_location == TensorProto.EXTERNAL
        if math.prod(constant.dims) <= MAX_SHAPE_ELEMENTS and not outside:
            light.graph.initializer.append(constant)
        else:
            info = helper.make_tensor_value_info(constant.name, constant.data_type, constant.dims)
            light.graph.input.append(info)
    return light
