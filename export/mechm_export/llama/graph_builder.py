"""Building ONNX graphs operator by operator, for graphs that are not traced from torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from mechm_export.graphs.files import MICROSOFT
from mechm_runtime.bundle.manifest import Tensor

IR_VERSION = 10


class GraphBuilder:
    """Collects nodes in the order of the calls; arguments and results are names of tensors."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, values: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> str:
        """Add a constant tensor; one that exists already under this name is used again."""
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(values, dtype), name)
        return name

    def integers(self, *values: int) -> str:
        """Add a constant int64 (n,), the form in which operators take axes and shapes."""
        return self.constant("_".join(["integers", *map(str, values)]), np.array(values, np.int64))

    def op(self, operator: str, *inputs: str, output: str = "", domain: str = "", **attributes: Any) -> str:
        """Add an operator and return its only output. output: its name, where it is an output of the graph."""
        name = f"{operator}_{len(self._nodes)}"
        self._add(operator, name, inputs, [output or name], domain, attributes)
        return output or name

    def ops(
        self, operator: str, *inputs: str, n_outputs: int, skip: Sequence[int] = (), domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add an operator and return its outputs. skip: positions of outputs that are not needed; returned as ""."""
        name = f"{operator}_{len(self._nodes)}"
        outputs = ["" if i in skip else f"{name}_{i}" for i in range(n_outputs)]
        self._add(operator, name, inputs, outputs, domain, attributes)
        return outputs

    def model(
        self, graph: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], opset: int, own_operators: bool = False
    ) -> onnx.ModelProto:
        """Assemble the graph. own_operators: whether it uses onnxruntime's own operators."""
        opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(MICROSOFT, 1)] if own_operators else [])]
        return helper.make_model(
            helper.make_graph(
                self._nodes,
                graph,
                [_value(tensor) for tensor in inputs],
                [_value(tensor) for tensor in outputs],
                list(self._constants.values()),
            ),
            opset_imports=opsets,
            ir_version=IR_VERSION,
        )

    def _add(
        self,
        operator: str,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        domain: str,
        attributes: Mapping[str, Any],
    ) -> None:
        self._nodes.append(helper.make_node(operator, inputs, outputs, name=name, domain=domain, **attributes))


def _value(tensor: Tensor) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return helper.make_tensor_value_info(tensor.name, dtype, list(tensor.axes))
