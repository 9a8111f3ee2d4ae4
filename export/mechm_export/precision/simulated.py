"""Simulation of 16-bit graphs on a CPU, rounding where a GPU rounds.

onnxruntime's CPU provider has no bf16 kernels and computes most of fp16 in fp32, so that it does not show a sum beyond
the range of fp16. Here every 16-bit value is rounded where a GPU would round it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.external_data_helper import uses_external_data

from mechm_export.graphs.nodes import set_nodes
from mechm_export.precision.half import ELEMENT_TYPES
from mechm_export.precision.onnxruntime_tools import onnxruntime
from mechm_export.precision.tensor_types import element_types
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.system.arrays import Array


class SimulatedHalfRunner:
    """Runs a 16-bit graph in float32 with every 16-bit value rounded, behind the runtime's interface."""

    def __init__(self, path: Path) -> None:
        model = onnx.load(path, load_external_data=False)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = EngineConfig().threads
        options.log_severity_level = 3
        with _simulated_file(path, model) as simulated:
            onnx.save_model(simulate_half(model), simulated)
            self._session = onnxruntime.InferenceSession(simulated, options, providers=["CPUExecutionProvider"])

    def run(self, inputs: Any) -> dict[str, Array]:
        """Compute the outputs, by name, from the inputs, by name."""
        feeds = {one.name: inputs[one.name] for one in self._session.get_inputs()}
        names = [one.name for one in self._session.get_outputs()]
        return dict(zip(names, (np.asarray(value) for value in self._session.run(names, feeds)), strict=True))


@contextmanager
def _simulated_file(path: Path, model: onnx.ModelProto) -> Iterator[Path]:
    """A path for the float32 graph while it is loaded: beside weights outside the file, else in a temporary folder."""
    if any(uses_external_data(tensor) for tensor in model.graph.initializer):
        beside = path.with_name(f"{path.stem}.rounded.onnx")
        try:
            yield beside
        finally:
            beside.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder, path.name)


def simulate_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Build the float32 graph that computes the same as a 16-bit one.

    Each 16-bit result is rounded to 16 bits and converted back to float32. Inputs and outputs that have 16 bits keep
    them.
    model: without its external data, to which the new graph refers too.
    """
    types = element_types(model)
    halves = {name for name, kind in types.items() if kind in ELEMENT_TYPES.values()}
    simulated = onnx.ModelProto()
    simulated.CopyFrom(model)
    inside = {value.name: f"{value.name}_inside" for value in (*simulated.graph.input, *simulated.graph.output)}
    inside = {name: renamed for name, renamed in inside.items() if name in halves}
    for node in simulated.graph.node:
        node.input[:] = [inside.get(name, name) for name in node.input]
        node.output[:] = [inside.get(name, name) for name in node.output]
    nodes = [
        helper.make_node("Cast", [value.name], [inside[value.name]], to=TensorProto.FLOAT)
        for value in simulated.graph.input
        if value.name in inside
    ]
    for name, renamed in inside.items():
        types[renamed] = types[name]
    halves = {inside.get(name, name) for name in halves}
    for tensor in simulated.graph.initializer:
        if tensor.name in halves:
            wide, tensor.name = tensor.name, f"{tensor.name}_half"
            nodes.append(helper.make_node("Cast", [tensor.name], [wide], to=TensorProto.FLOAT))
    for node in simulated.graph.node:
        nodes.append(node)
        for position, name in enumerate(node.output):
            if name not in halves:
                continue
            if node.op_type != "Cast":  # a cast rounds already
                node.output[position] = f"{name}_wide"
                nodes.append(helper.make_node("Cast", [f"{name}_wide"], [f"{name}_half"], to=types[name]))
            else:
                node.output[position] = f"{name}_half"
            nodes.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    nodes += [
        helper.make_node("Cast", [inside[value.name]], [value.name], to=types[value.name])
        for value in simulated.graph.output
        if value.name in inside
    ]
    del simulated.graph.value_info[:]
    set_nodes(simulated, nodes)
    return simulated
