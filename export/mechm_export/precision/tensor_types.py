"""What the tensors of a graph are: their element types, and which of them lead to an index or an angle.

Weights are not looked at, so that a graph of gigabytes, with its weights in the file or beside it, costs nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
from onnx import TensorProto, helper

from mechm_runtime.errors import VerificationError

SMALL_CONSTANT = 1024
"""Elements of a constant that may be a shape, which inference wants to read."""

EXACT = frozenset(("Sin", "Cos", "Floor", "Ceil", "Round", "Mod"))
"""Operators that turn a small difference into a large one: positions of a rotary embedding, buckets of a relative
position."""


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of a graph's tensors, as far as they are known: name -> TensorProto's number."""
    graph = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {constant.name: constant.data_type for constant in model.graph.initializer}


def known_types(model: onnx.ModelProto) -> dict[str, int]:
    """`element_types`, of a graph that has no tensor of an unknown one.

    Raises: VerificationError: it has.
    """
    types = element_types(model)
    for node in model.graph.node:
        if unknown := [name for name in node.output if name and not types.get(name)]:
            raise VerificationError(f"the type of {unknown[0]} ({node.op_type}) is not known")
    return types


def led_to_exact(model: onnx.ModelProto, types: Mapping[str, int]) -> set[str]:
    """Names of the floats that end in an operator of `EXACT`, or in an integer or a boolean.

    types: of every tensor, by name (`known_types`).
    """
    floats = {name for name, kind in types.items() if is_float(kind)}
    led: set[str] = set()
    for node in reversed(model.graph.node):
        becomes_whole = node.op_type == "Cast" and not is_float(types[node.output[0]])
        if node.op_type in EXACT or becomes_whole or led.intersection(node.output):
            led.update(floats.intersection(node.input))
    return led


def is_float(element_type: int) -> bool:
    """Whether a type holds fractions, whatever its width."""
    kind = helper.tensor_dtype_to_np_dtype(element_type)
    return kind.kind == "f" or kind.name.startswith(("bfloat", "float"))


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose large constants are inputs of the same type: shape inference copies what it is given."""
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
        if math.prod(constant.dims) <= SMALL_CONSTANT and not outside:
            light.graph.initializer.append(constant)
        else:
            info = helper.make_tensor_value_info(constant.name, constant.data_type, constant.dims)
            light.graph.input.append(info)
    return light
