"""Conversion of a graph to fp16 or bfloat16, with norms, softmax and other sums left in fp32.

TensorRT's strongly typed networks compute in the types that the ONNX states, and TensorRT-RTX has no other networks, so
whatever shall run in 16 bits is in 16 bits in the graph. Inputs and outputs stay float32. onnxruntime's own converter
(`onnxruntime.transformers.float16`) converts to fp16 only, and writes nodes out of order, which onnx's checker refuses.
As there, values beyond the range of fp16 become its largest value: a mask's -3e38 as -inf would turn a padded row into
NaN.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper

from mechm_export.graphs.nodes import captured_names, drop_unused_constants, set_nodes
from mechm_export.precision.tensor_types import known_types, precision_sensitive
from mechm_runtime.errors import VerificationError
from mechm_runtime.system.arrays import Array, Float32Array

HalfPrecision = Literal["fp16", "bf16"]

DTYPES: dict[HalfPrecision, Any] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
ELEMENT_TYPES: dict[HalfPrecision, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}

LARGEST: dict[HalfPrecision, float] = {"fp16": 65504.0, "bf16": 255 * 2.0**120}
"""The largest finite value of each: sign, 5 and 8 bits of exponent, 10 and 7 of fraction."""

PRODUCTS = ("MatMul", "Gemm", "Conv")
"""Operators that take most of the time, and that have weights."""
ATTENTION = "Attention"

ELEMENTWISE = frozenset(("Add", "Sub", "Mul", "Div", "Neg", "Abs", "Max", "Min", "Clip"))
"""Element-wise operators. Between sums they stay in fp32: a mean is a sum over a count, and neither has to fit into
fp16."""

COMPUTED_IN_HALF = frozenset(
    (
        *PRODUCTS,
        *("ConvTranspose", "Einsum", ATTENTION),
        # Element by element: each result is a single rounding away from its exact value.
        *ELEMENTWISE,
        *("Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Relu", "Sigmoid", "Swish", "Tanh"),
        "Where",
    )
)
"""Operators that are computed in 16 bits. All others stay in fp32: norms, softmax, sums, powers, exponentials, and
unknown operators."""

TABLE_LOOKUPS = frozenset(("Gather", "Slice"))
"""Operators that are computed in 16 bits too where they read a constant table, which then takes half the space."""

DATA_MOVEMENT = frozenset(
    (
        *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherND", "Identity", "MaxPool", "Pad", "Reshape"),
        *("Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    )
)
"""Operators that pass values on without rounding: their results have 16 bits where their inputs have."""

REDUCTIONS = frozenset(("ReduceMean", "ReduceSum", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"))

QUANTIZED = frozenset(("DequantizeLinear", "QuantizeLinear", "MatMulInteger", "ConvInteger", "DynamicQuantizeLinear"))


def half_nodes(model: onnx.ModelProto, precision: HalfPrecision) -> list[onnx.NodeProto]:
    """The nodes that round when a graph is put into 16 bits, in order.

    These are the operators of COMPUTED_IN_HALF, and look-ups in constant tables.
    Left out are nodes that compute with sums only, nodes whose result becomes an index or an angle
    (`tensor_types.precision_sensitive`), and operators that lack the type in the graph's opset (Conv has bfloat16 from
    opset 22 on).
    Raises: VerificationError: a type in the graph is not known.
    """
    return _half_nodes(model, precision, known_types(model))


def to_half(
    model: onnx.ModelProto, precision: HalfPrecision, fp32_nodes: Collection[str] = (), folder: Path | None = None
) -> int:
    """Convert a graph in place; returns the number of nodes that are computed in 16 bits.

    Bodies of branches and loops stay in fp32.
    fp32_nodes: names of nodes that stay in fp32. folder: folder of the weights that are outside the graph; they are
    read one at a time, and those that stay in fp32 are not read.
    Raises: VerificationError: `fp32_nodes` names an unknown node, the graph is quantized, or nothing is left to
        convert.
    """
    graph = model.graph
    if unknown := sorted(set(fp32_nodes) - {node.name for node in graph.node}):
        raise VerificationError(f"the graph has no node {unknown[0]}", hint="mechm export diagnose lists the names")
    if quantized := sorted({node.op_type for node in graph.node} & QUANTIZED):
        raise VerificationError(f"the graph is quantized ({quantized[0]}): give the fp32 one")
    types = known_types(model)
    computed = {
        _first_output(node)
        for node in _half_nodes(model, precision, types)
        if not node.name or node.name not in fp32_nodes
    }
    if not computed:
        raise VerificationError(f"nothing in the graph can be computed in {precision}")
    floats = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
    half = _half_tensors(model, precision, computed, floats, fp32_nodes)
    _insert_casts(model, precision, floats, half, folder)
    drop_unused_constants(model)
    del graph.value_info[:]  # it states the types before the conversion
    return len(computed)


def _half_tensors(
    model: onnx.ModelProto,
    precision: HalfPrecision,
    computed: Collection[str],
    floats: set[str],
    fp32_nodes: Collection[str],
) -> set[str]:
    """Names of the tensors that have 16 bits: results of the computed nodes, and of nodes that pass them on.

    computed: nodes that are computed in 16 bits, by their first output. floats: names of all float32 tensors.
    """
    constants = {constant.name for constant in model.graph.initializer}
    half: set[str] = set()
    for node in model.graph.node:
        read = floats.intersection(node.input)
        moves = node.op_type in DATA_MOVEMENT and bool(read & half) and read <= half | constants
        moves = moves and not (node.name and node.name in fp32_nodes)
        if _first_output(node) in computed or (moves and _has_type(node, precision, model)):
            half.update(floats.intersection(node.output))
    return half


def _insert_casts(
    model: onnx.ModelProto, precision: HalfPrecision, floats: set[str], half: set[str], folder: Path | None
) -> None:
    """Rename the tensors in `half`, convert the constants their nodes read, and cast where 16 bits meet float32."""
    graph = model.graph
    constants = {i.name: i for i in graph.initializer}
    read_in_fp32 = _read_in_fp32(graph, half) & half
    converted: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if not half.intersection(node.output):
            nodes.append(node)
            continue
        for position, name in enumerate(node.input):
            if name not in floats:
                continue
            lower = node.input[position] = f"{name}_{precision}"
            if name in half or lower in converted:
                continue
            converted.add(lower)
            if name in constants:
                values = numpy_helper.to_array(constants[name], base_dir=str(folder or ""))
                graph.initializer.append(numpy_helper.from_array(round_to(values, precision), lower))
            else:
                cast = helper.make_node("Cast", [name], [lower], name=f"{lower}_cast", to=ELEMENT_TYPES[precision])
                nodes.append(cast)
        if node.op_type == ATTENTION:
            node.attribute.append(helper.make_attribute("softmax_precision", TensorProto.FLOAT))
        nodes.append(node)
        for position, name in enumerate(node.output):
            if name not in half:
                continue
            node.output[position] = f"{name}_{precision}"
            if name in read_in_fp32:
                back = helper.make_node(
                    "Cast", [f"{name}_{precision}"], [name], name=f"{name}_fp32", to=TensorProto.FLOAT
                )
                nodes.append(back)
    set_nodes(model, nodes)


def round_to(values: Float32Array, precision: HalfPrecision) -> Array:
    """Round values to a 16-bit type; those beyond its range, infinite ones too, become its largest finite value.

    A mask holds the lowest float32 or minus infinity. The lowest finite value masks as well, and 0 times it is 0.
    """
    largest = np.float32(LARGEST[precision])
    return np.asarray(np.clip(values, -largest, largest).astype(DTYPES[precision]))


def _half_nodes(model: onnx.ModelProto, precision: HalfPrecision, types: Mapping[str, int]) -> list[onnx.NodeProto]:
    sensitive = precision_sensitive(model, types)
    constants = {i.name for i in model.graph.initializer}
    singles = {i.name for i in model.graph.initializer if list(i.dims) in ([], [1])}
    sums: set[str] = set()
    chosen = []
    for node in model.graph.node:
        only_sums = _reads_only_sums(node, sums, singles)
        if only_sums or node.op_type in REDUCTIONS:
            sums.update(node.output)
        wanted = node.op_type in COMPUTED_IN_HALF or (node.op_type in TABLE_LOOKUPS and node.input[0] in constants)
        results = [name for name in node.output if name]
        if (
            wanted
            and not (only_sums and node.op_type in ELEMENTWISE)
            and not sensitive.intersection(results)
            and all(types[name] == TensorProto.FLOAT for name in results)
            and _has_type(node, precision, model)
        ):
            chosen.append(node)
    return chosen


def _reads_only_sums(node: onnx.NodeProto, sums: Collection[str], singles: Collection[str]) -> bool:
    """Whether a node computes with, or passes on, only sums and single numbers."""
    if node.op_type not in (*ELEMENTWISE, DATA_MOVEMENT, "Cast", "Sqrt"):
        return False
    # The other inputs of a node that moves values are shapes and indices.
    read = node.input[:1] if node.op_type in DATA_MOVEMENT and node.op_type != "Concat" else node.input
    others = {name for name in read if name} - set(singles)
    return bool(others) and others <= set(sums)


def _first_output(node: onnx.NodeProto) -> str:
    """The name of a node's first output, which identifies it: the node's own name may be missing."""
    return next((name for name in node.output if name), "")


def _has_type(node: onnx.NodeProto, precision: HalfPrecision, model: onnx.ModelProto) -> bool:
    """Whether an operator of ONNX's own can have results in a 16-bit type, in the model's opset."""
    if node.domain not in ("", "ai.onnx"):
        return False
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    schema = defs.get_schema(node.op_type, opset, "")
    allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
    return f"tensor({np.dtype(DTYPES[precision]).name})" in allowed.get(schema.outputs[0].type_str, ())


def _read_in_fp32(graph: onnx.GraphProto, half: Collection[str]) -> set[str]:
    """Names of the tensors that nodes in fp32, subgraphs or the caller read."""
    read = {output.name for output in graph.output}
    for node in graph.node:
        read.update(captured_names(node))
        if not set(half).intersection(node.output):
            read.update(node.input)
    return read
