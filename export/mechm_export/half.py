"""A graph in fp16 or bfloat16, with norms, softmax and other sums left in fp32; types are in the graph itself.

TensorRT's strongly typed networks compute in the types that the ONNX names, and TensorRT-RTX knows no others, so what
is to run in 16 bits must be in 16 bits here. Inputs and outputs stay float32. onnxruntime's own converter
(`onnxruntime.transformers.float16`) knows fp16 only; what it does with values beyond fp16's range is done here too:
they become the largest one, since a mask's -3e38 as -inf would turn a padded row into NaN.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, defs, helper, numpy_helper

from mechm_export.smoothing import set_nodes
from mechm_runtime.errors import VerificationError

HalfPrecision = Literal["fp16", "bf16"]

DTYPES: dict[HalfPrecision, Any] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
ELEMENT_TYPES: dict[HalfPrecision, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}

LARGEST: dict[HalfPrecision, float] = {"fp16": 65504.0, "bf16": 3.3895313892515355e38}
"""The largest finite value of each."""
SMALL_CONSTANT = 1024
"""Elements of a constant that may be a shape, which inference wants to read."""

PRODUCTS = ("MatMul", "Gemm", "Conv")
"""Where the time goes."""

COMPUTED = frozenset(
    (
        *PRODUCTS,
        # Element by element: each result is a single rounding away from its exact value.
        *("Add", "Sub", "Mul", "Div", "Neg", "Abs", "Max", "Min", "Relu", "Gelu", "Erf", "Tanh", "Sigmoid", "Where"),
    )
)
"""Operators that are computed in 16 bits. All others stay in fp32: norms, softmax, sums, powers, exponentials and what
is unknown."""

MOVED = frozenset(
    (
        *("Concat", "Expand", "Flatten", "Gather", "GatherND", "MaxPool", "Reshape", "Slice", "Split", "Squeeze"),
        *("Transpose", "Unsqueeze"),
    )
)
"""Operators that pass values on: they take 16 bits from what they read, and round nothing."""


EXACT = frozenset(("Sin", "Cos", "Floor", "Ceil", "Round", "Mod"))
"""Operators that turn a small difference into a large one. What leads to them stays in fp32, as do floats that become
integers: positions of a rotary embedding, buckets of a relative position."""


def lowerable(model: onnx.ModelProto, precision: HalfPrecision) -> list[onnx.NodeProto]:
    """The nodes that round when a graph is put into 16 bits, in order: `COMPUTED`, and look-ups in constant tables.

    Left out is what leads to an index or an angle (`EXACT`). An operator that has no such type in the graph's opset is
    left out too (a Conv has bfloat16 from opset 22 on).
    Raises: VerificationError: a type in the graph is not known.
    """
    floats = float_tensors(model)
    constants = {i.name for i in model.graph.initializer}
    exact = led_to_exact(model, floats)
    return [
        node
        for node in model.graph.node
        if node.name not in exact
        and (node.op_type in COMPUTED or (node.op_type == "Gather" and node.input[0] in constants))
        and set(node.output) <= floats
        and _has_type(node, precision, model)
    ]


def to_half(model: onnx.ModelProto, precision: HalfPrecision, kept: Collection[str] = ()) -> int:
    """Convert a graph in place; returns how many nodes are computed in 16 bits.

    kept: names of nodes that stay in fp32.
    Raises: VerificationError: a name in `kept` is no node's, or nothing is left to convert.
    """
    if unknown := sorted(set(kept) - {node.name for node in model.graph.node}):
        raise VerificationError(f"the graph has no node {unknown[0]}", hint="mechm export diagnose lists the names")
    computed = {node.output[0] for node in lowerable(model, precision) if node.name not in kept}
    if not computed:
        raise VerificationError(f"nothing in the graph can be computed in {precision}")
    graph, floats = model.graph, float_tensors(model)
    constants = {i.name: i for i in graph.initializer}
    half_outputs: set[str] = set()
    for node in graph.node:
        read = {name for name in node.input if name in floats}
        moves = node.op_type in MOVED and bool(read & half_outputs) and read <= half_outputs | constants.keys()
        if node.output[0] in computed or (moves and node.name not in kept and _has_type(node, precision, model)):
            half_outputs.update(node.output)
    outputs = {node.output[0] for node in graph.node} & half_outputs
    wanted = _read_in_fp32(graph, outputs) & half_outputs
    suffix, element_type = f"_{precision}", ELEMENT_TYPES[precision]
    made: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.output[0] not in outputs:
            nodes.append(node)
            continue
        for position, name in enumerate(node.input):
            if name not in floats:
                continue
            half = f"{name}{suffix}"
            if name in constants and half not in made:
                values = round_to(numpy_helper.to_array(constants[name]), precision)
                graph.initializer.append(numpy_helper.from_array(values, half))
            elif name not in half_outputs and half not in made:
                nodes.append(helper.make_node("Cast", [name], [half], name=f"{half}_cast", to=element_type))
            made.add(half)
            node.input[position] = half
        nodes.append(node)
        for position, name in enumerate(node.output):
            node.output[position] = f"{name}{suffix}"
            if name in wanted:
                back = helper.make_node("Cast", [f"{name}{suffix}"], [name], name=f"{name}_fp32", to=TensorProto.FLOAT)
                nodes.append(back)
    set_nodes(model, nodes)
    drop_unused_constants(model)
    del graph.value_info[:]  # they speak of the types before
    return len(computed)


def round_to(values: npt.NDArray[np.float32], precision: HalfPrecision) -> npt.NDArray[Any]:
    """Values in a 16-bit type; finite ones beyond its range become the largest one."""
    dtype = DTYPES[precision]
    largest = LARGEST[precision]
    clipped = np.where(np.isfinite(values), np.clip(values, -largest, largest), values)
    return np.asarray(clipped.astype(dtype))


def float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of the float32 tensors of a graph.

    Raises: VerificationError: the type of one is not known.
    """
    inferred = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input, *inferred.output)}
    types |= {i.name: i.data_type for i in model.graph.initializer}
    for node in model.graph.node:
        if unknown := [name for name in node.output if name and not types.get(name)]:
            raise VerificationError(f"the type of {unknown[0]} ({node.op_type}) is not known")
    return {name for name, element_type in types.items() if element_type == TensorProto.FLOAT}


def drop_unused_constants(model: onnx.ModelProto) -> None:
    """Remove initializers that no node reads, in place."""
    used = {name for node in model.graph.node for name in (*node.input, *_captured(node))}
    used |= {output.name for output in model.graph.output}
    kept = [i for i in model.graph.initializer if i.name in used]
    if len(kept) == len(model.graph.initializer):
        return
    copies = [TensorProto.FromString(i.SerializeToString()) for i in kept]
    del model.graph.initializer[:]
    model.graph.initializer.extend(copies)


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose large constants are inputs of the same type: shape inference copies what it is given."""
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = model.graph
    light.graph.name = graph.name
    light.graph.node.extend(graph.node)
    light.graph.input.extend(graph.input)
    light.graph.output.extend(graph.output)
    light.graph.value_info.extend(graph.value_info)
    for constant in graph.initializer:
        if np.prod(constant.dims) <= SMALL_CONSTANT:
            light.graph.initializer.append(constant)
        else:
            info = helper.make_tensor_value_info(constant.name, constant.data_type, constant.dims)
            light.graph.input.append(info)
    return light


def led_to_exact(model: onnx.ModelProto, floats: Collection[str]) -> set[str]:
    """Names of the nodes whose floats end in an operator of `EXACT`, or in an integer."""
    wanted: set[str] = set()
    names: set[str] = set()
    for node in reversed(model.graph.node):
        becomes_integer = node.op_type == "Cast" and not set(node.output) & set(floats)
        if node.op_type in EXACT or becomes_integer or set(node.output) & wanted:
            names.add(node.name)
            wanted.update(name for name in node.input if name in floats)
    return names


def _has_type(node: onnx.NodeProto, precision: HalfPrecision, model: onnx.ModelProto) -> bool:
    """Whether an operator of ONNX's own may have results in a 16-bit type, in the model's opset."""
    if node.domain not in ("", "ai.onnx"):
        return False
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    schema = defs.get_schema(node.op_type, opset, "")
    allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
    return f"tensor({np.dtype(DTYPES[precision]).name})" in allowed.get(schema.outputs[0].type_str, ())


def _read_in_fp32(graph: onnx.GraphProto, outputs: Collection[str]) -> set[str]:
    """Names that are read by nodes that stay, by subgraphs, or by the caller."""
    read = {output.name for output in graph.output}
    for node in graph.node:
        read.update(_captured(node))
        if node.output[0] not in outputs:
            read.update(node.input)
    return read


def _captured(node: onnx.NodeProto) -> set[str]:
    """Names that the bodies of a node's branches or loops read from outside."""
    bodies = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return {name for body in bodies for inner in body.node for name in (*inner.input, *_captured(inner))}
