"""fp32 graphs to fp16 or bf16: weights and products in 16 bits, norms, softmax and sums over time in fp32.

Inputs and outputs stay float32. onnxruntime's own tool for this (`onnxruntime.transformers.float16`) writes nodes out
of order, which onnx's checker refuses, and has no bf16; both are one rewriting here.

onnxruntime's CPU provider has no bf16 kernels and computes most of fp16 in fp32, so that a sum beyond fp16's range goes
unseen there. `rounded` is what such a graph is checked with: every 16-bit value rounded where a GPU would round it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor

from mechm_export.onnx_graph import save_graph, strip_provenance
from mechm_export.smoothing import set_nodes
from mechm_runtime.errors import VerificationError

Half = Literal["fp16", "bf16"]
HALVES: dict[Half, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
DTYPES: dict[int, npt.DTypeLike] = {TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16}
LARGEST: dict[int, float] = {TensorProto.FLOAT16: 65504.0, TensorProto.BFLOAT16: 255 * 2.0**120}
"""Finite values: sign, 5 and 8 bits of exponent, 10 and 7 of fraction."""

REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"})
KEPT = REDUCTIONS | {
    *("LayerNormalization", "GroupNormalization", "InstanceNormalization", "BatchNormalization", "RMSNormalization"),
    *("LpNormalization", "Softmax", "LogSoftmax", "Pow", "Sqrt", "Reciprocal", "Exp", "Log", "CumSum", "Range"),
    *("Cast", "Constant", "ConstantOfShape"),
}
"""Operators that stay in fp32: their results span more than 16 bits hold, or they make fp32 of something else."""
ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Clip", "Neg", "Abs"})
"""Stay in fp32 between reductions: a mean is a sum over a count, and neither needs to fit into fp16."""
QUANTIZED = frozenset({"DequantizeLinear", "QuantizeLinear", "MatMulInteger", "ConvInteger", "DynamicQuantizeLinear"})


def lower_precision(source: Path, target: Path, precision: Half) -> None:
    """Write a graph's fp16 or bf16 form.

    source: a float32 graph; weights beside it are read one at a time.
    Raises: VerificationError: it has branches or loops, or is quantized.
    """
    model = onnx.load(source, load_external_data=False)
    _Lowering(model, source.parent, HALVES[precision]).run()
    strip_provenance(model)
    save_graph(model, target)
    onnx.checker.check_model(target, full_check=True)


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The float32 graph that computes what a 16-bit one does: each 16-bit result is rounded to 16 bits and widened.

    model: without its external data, which the result refers to as well.
    """
    types = value_types(model)
    halves = {name for name, kind in types.items() if kind in DTYPES}
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    for tensor in twin.graph.initializer:
        if tensor.name in halves:
            wide, tensor.name = tensor.name, f"{tensor.name}_half"
            nodes.append(helper.make_node("Cast", [tensor.name], [wide], to=TensorProto.FLOAT))
    for node in twin.graph.node:
        nodes.append(node)
        for position, name in enumerate(node.output):
            if name not in halves:
                continue
            if node.op_type != "Cast":  # a cast rounds by itself
                node.output[position] = f"{name}_wide"
                nodes.append(helper.make_node("Cast", [f"{name}_wide"], [f"{name}_half"], to=types[name]))
            else:
                node.output[position] = f"{name}_half"
            nodes.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    del twin.graph.value_info[:]
    set_nodes(twin, nodes)
    return twin


def value_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of a graph's values, as far as they can be inferred: name -> TensorProto's number."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


class _Lowering:
    """One graph on its way; float32 values keep their names, their 16-bit forms are `<name>_low`."""

    def __init__(self, model: onnx.ModelProto, folder: Path, low: int) -> None:
        self.model, self.folder, self.low = model, folder, low
        self.type_name = "tensor(float16)" if low == TensorProto.FLOAT16 else "tensor(bfloat16)"
        self.opsets = {one.domain: one.version for one in model.opset_import}
        self.floats = {name for name, kind in value_types(model).items() if kind == TensorProto.FLOAT}
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.lowered: set[str] = set()
        """Values that a lowered node makes: only their 16-bit form is there by itself."""
        self.sums: set[str] = set()
        self.made: set[str] = set()
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> None:
        graph = self.model.graph
        for node in graph.node:
            if node.op_type in QUANTIZED:
                raise VerificationError(f"the graph is quantized ({node.op_type}): give the fp32 one")
            if any(attribute.type in (attribute.GRAPH, attribute.GRAPHS) for attribute in node.attribute):
                raise VerificationError(f"the graph has a {node.op_type}: only graphs without branches are lowered")
            self._node(node)
        for output in graph.output:
            self._form(output.name, low=False)
        used = {name for node in self.nodes for name in node.input} | {output.name for output in graph.output}
        for name in [name for name in self.weights if name not in used]:
            graph.initializer.remove(self.weights[name])
        for tensor in graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:  # what stays in fp32 no longer lies beside the source
                load_external_data_for_tensor(tensor, str(self.folder))
                tensor.data_location = TensorProto.DEFAULT
                del tensor.external_data[:]
        del graph.value_info[:]
        set_nodes(self.model, self.nodes)

    def _node(self, node: onnx.NodeProto) -> None:
        sources = [name for name in node.input if name in self.floats]
        results = [name for name in node.output if name in self.floats]
        if self._sums(node, sources):
            self.sums.update(results)
        lowered = bool(results) and self._may_lower(node, sources)
        for position, name in enumerate(node.input):
            if name in self.floats:
                node.input[position] = self._form(name, low=lowered and self._takes_low(node, position))
        if lowered:
            self.lowered.update(results)
            for position, name in enumerate(node.output):
                if name in self.floats:
                    node.output[position] = f"{name}_low"
            if node.op_type == "Attention":
                node.attribute.append(helper.make_attribute("softmax_precision", TensorProto.FLOAT))
        self.nodes.append(node)

    def _sums(self, node: onnx.NodeProto, sources: list[str]) -> bool:
        """Whether a node makes sums, or computes with nothing but sums and single numbers."""
        if node.op_type in REDUCTIONS:
            return True
        others = [
            name for name in sources if name not in self.weights or list(self.weights[name].dims) not in ([], [1])
        ]
        return node.op_type in (*ELEMENTWISE, "Sqrt") and bool(others) and self.sums.issuperset(others)

    def _may_lower(self, node: onnx.NodeProto, sources: list[str]) -> bool:
        if node.op_type in KEPT or (node.op_type in ELEMENTWISE and self._sums(node, sources)):
            return False
        schema = self._schema(node)
        return schema is not None and all(
            self._allows(schema, schema.outputs, position)
            for position, name in enumerate(node.output)
            if name in self.floats
        )

    def _takes_low(self, node: onnx.NodeProto, position: int) -> bool:
        schema = self._schema(node)
        return schema is not None and self._allows(schema, schema.inputs, position)

    def _allows(self, schema: Any, parameters: Any, position: int) -> bool:
        kind = parameters[min(position, len(parameters) - 1)].type_str
        allowed = {one.type_param_str: one.allowed_type_strs for one in schema.type_constraints}
        return self.type_name in allowed.get(kind, ())

    def _schema(self, node: onnx.NodeProto) -> Any:
        """The operator's definition, None for one that is not ONNX's own."""
        if node.domain not in ("", "ai.onnx"):
            return None
        version = self.opsets.get("", self.opsets.get("ai.onnx", 0))
        return onnx.defs.get_schema(node.op_type, version)

    def _form(self, name: str, *, low: bool) -> str:
        """The name of a float value in 16 or 32 bits; what makes that form is added where it is first needed."""
        other = f"{name}_low" if low else name
        if low == (name in self.lowered) or other in self.made:
            return other
        self.made.add(other)
        if low and name in self.weights:
            self.model.graph.initializer.append(self._rounded_weight(name, other))
        else:
            source, kind = (name, self.low) if low else (f"{name}_low", TensorProto.FLOAT)
            self.nodes.append(helper.make_node("Cast", [source], [other], name=f"{other}_cast", to=kind))
        return other

    def _rounded_weight(self, name: str, other: str) -> onnx.TensorProto:
        values = numpy_helper.to_array(self.weights[name], base_dir=str(self.folder))
        dtype = DTYPES[self.low]
        # Masks hold the lowest float32, or minus infinity: the lowest finite value serves, and 0 times it is 0.
        limit = np.float32(LARGEST[self.low])
        return numpy_helper.from_array(np.clip(values, -limit, limit).astype(dtype), other)
