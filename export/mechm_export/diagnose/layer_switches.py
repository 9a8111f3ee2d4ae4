"""A graph whose layers can each be switched to a lower precision for a run, without building the graph again.

Each layer becomes a branch: exact, or with its inputs and results rounded as the lower precision would round them.
Products are computed in fp32, since GPUs accumulate products of 16 bits or less in 32 bits. So any machine can measure
what fp16, bfloat16 or static int8 (`precision.lower`) change in the answers, per layer and all together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mechm_export.graphs.nodes import set_nodes
from mechm_export.precision.dynamic_int8 import MIN_SCALE
from mechm_export.precision.half import ELEMENT_TYPES, half_nodes, round_to
from mechm_export.precision.lower import LowerPrecision
from mechm_export.precision.smoothing import linear_layers
from mechm_export.precision.static_int8 import load_smoothed, quantizable_nodes
from mechm_export.precision.tensor_types import known_types
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.errors import VerificationError
from mechm_runtime.system.arrays import Array, Arrays, BoolArray, Float32Array

FLAGS = "mechm_lowered"
"""The input that selects the layers in the lower precision: bool (layers,)."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Name and operator of a layer that can be switched. source: its input tensor, None if it is not a linear layer."""

    name: str
    operator: str
    source: str | None


class LayerSwitches:
    """A graph whose layers are switched to a lower precision by name.

    source: a graph in fp32, in one file. feeds: real inputs, from which int8 takes its scales. workspace: a folder for
    the graph with its branches. `model` is the graph in fp32 to which the layers' names belong.
    Raises: VerificationError: the precision changes no layer, or int8 without inputs.
    """

    def __init__(self, source: Path, precision: LowerPrecision, feeds: Sequence[Arrays], workspace: Path) -> None:
        if precision == "int8":
            self.model = load_smoothed(source, feeds)
            peaks = quantizable_nodes(self.model, feeds)
            nodes = [node for node in self.model.graph.node if node.name in peaks]
            rounding = _Rounding(precision, peaks)
        else:
            self.model = onnx.load(source)
            nodes = half_nodes(self.model, precision)
            rounding = _Rounding(precision)
        if not nodes:
            raise VerificationError(f"{source.name} has nothing that {precision} would change")
        linear = {node.name: node.input[0] for node in linear_layers(self.model)}
        self.layers = tuple(Layer(node.name, node.op_type, linear.get(node.name)) for node in nodes)
        path = workspace / f"{source.stem}.switches.onnx"
        onnx.save_model(_with_branches(self.model, [layer.name for layer in self.layers], rounding), path)
        self._engine = OnnxRuntimeEngine(path, EngineConfig())

    def lower(self, names: Collection[str]) -> LoweredRunner:
        """The graph with these layers in the lower precision, behind the runtime's interface."""
        return LoweredRunner(self._engine, np.array([layer.name in names for layer in self.layers]))

    def lower_all_except(self, fp32_nodes: Collection[str]) -> LoweredRunner:
        """The graph with all layers but these in the lower precision."""
        return self.lower({layer.name for layer in self.layers} - set(fp32_nodes))


@dataclass(frozen=True, slots=True)
class LoweredRunner:
    """Runs the graph with a choice of layers in the lower precision. flags: bool (layers,)."""

    engine: OnnxRuntimeEngine
    flags: BoolArray

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Compute the outputs, by name, from the inputs, by name."""
        return self.engine.run({**inputs, FLAGS: self.flags})


@dataclass
class _Branch:
    """The branch of a lowered layer under construction: its nodes, and the constants that it adds to the graph."""

    prefix: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)

    def add(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node with one output; returns the output's name."""
        name = f"{self.prefix}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name


@dataclass(frozen=True, slots=True)
class _Rounding:
    """Rounding as a precision does it.

    16 bits round weights, inputs and results. int8 rounds weights with one scale per column, and inputs with one scale
    per tensor. peaks: for int8, layer -> largest magnitude of its input.
    """

    precision: LowerPrecision
    peaks: Mapping[str, float] = field(default_factory=dict)

    def weights(self, node: onnx.NodeProto, position: int, values: Float32Array) -> Float32Array:
        """Round a constant input; returns float32."""
        if self.precision != "int8":
            return np.asarray(round_to(values, self.precision), np.float32)
        if position != 1:  # a bias stays in fp32
            return values
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        columns = 0 if node.op_type == "Conv" or transposed else values.ndim - 1
        others = tuple(axis for axis in range(values.ndim) if axis != columns)
        scale = np.maximum(np.abs(values).max(others, keepdims=True) / 127, MIN_SCALE)
        return np.asarray(np.round(values / scale) * scale, np.float32)

    def activation(self, branch: _Branch, node: onnx.NodeProto, name: str) -> str:
        """Round an input; returns the name of the rounded tensor."""
        if self.precision != "int8":
            return self._cast_and_back(branch, name, ELEMENT_TYPES[self.precision])
        if name != node.input[0]:
            return name
        scale, zero = f"{branch.prefix}_scale", f"{branch.prefix}_zero"
        branch.constants |= {scale: np.array(self.peaks[node.name] / 127, np.float32), zero: np.array(0, np.int8)}
        rounded = branch.add("QuantizeLinear", [name, scale, zero])
        return branch.add("DequantizeLinear", [rounded, scale, zero])

    def result(self, branch: _Branch, name: str) -> str:
        """Round a result; returns the name of the rounded tensor."""
        return name if self.precision == "int8" else self._cast_and_back(branch, name, ELEMENT_TYPES[self.precision])

    @staticmethod
    def _cast_and_back(branch: _Branch, name: str, element_type: int) -> str:
        return branch.add("Cast", [branch.add("Cast", [name], to=element_type)], to=TensorProto.FLOAT)


def _with_branches(model: onnx.ModelProto, names: Sequence[str], rounding: _Rounding) -> onnx.ModelProto:
    """Copy a graph, with each named node replaced by a branch on its own flag."""
    switched = onnx.ModelProto()
    switched.CopyFrom(model)
    graph = switched.graph
    del graph.value_info[:]
    floats = {name for name, kind in known_types(model).items() if kind == TensorProto.FLOAT}
    constants = {i.name: i for i in model.graph.initializer}
    numbers = {name: number for number, name in enumerate(names)}
    graph.input.append(helper.make_tensor_value_info(FLAGS, TensorProto.BOOL, [len(names)]))
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.name not in numbers:
            nodes.append(node)
            continue
        branch = _Branch(f"mechm_{numbers[node.name]}")
        flag, position = f"{branch.prefix}_flag", f"{branch.prefix}_position"
        branch.constants[position] = np.array(numbers[node.name], np.int64)
        lowered = _fill_branch(node, branch, rounding, floats, constants)
        exact = _copy(node, node.input, f"{branch.prefix}_exact")
        nodes += [
            helper.make_node("Gather", [FLAGS, position], [flag], name=flag),
            helper.make_node(
                "If",
                [flag],
                node.output,
                name=f"{branch.prefix}_if",
                then_branch=_body(branch.nodes, lowered),
                else_branch=_body([exact], exact.output[0]),
            ),
        ]
        graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in branch.constants.items())
    set_nodes(switched, nodes)
    return switched


def _fill_branch(
    node: onnx.NodeProto,
    branch: _Branch,
    rounding: _Rounding,
    floats: Collection[str],
    constants: Mapping[str, onnx.TensorProto],
) -> str:
    """Fill a branch with the layer in the lower precision; returns the name of its result."""
    inputs = []
    for position, name in enumerate(node.input):
        if name not in floats:
            inputs.append(name)
        elif name in constants:
            rounded = f"{branch.prefix}_weights_{position}"
            values = numpy_helper.to_array(constants[name])
            branch.constants[rounded] = rounding.weights(node, position, values)
            inputs.append(rounded)
        else:
            inputs.append(rounding.activation(branch, node, name))
    exact = f"{branch.prefix}_product"
    branch.nodes.append(_copy(node, inputs, exact))
    return rounding.result(branch, exact)


def _copy(node: onnx.NodeProto, inputs: Sequence[str], output: str) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = output
    del copy.input[:], copy.output[:]
    copy.input.extend(inputs)
    copy.output.append(output)
    return copy


def _body(nodes: Sequence[onnx.NodeProto], output: str) -> onnx.GraphProto:
    described = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_graph(nodes, f"{output}_branch", [], [described])
