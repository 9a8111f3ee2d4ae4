"""Minimal cost of one run of a graph: arithmetic operations and bytes, from the shapes that ran.

onnxruntime's profile lists every executed operator with its shapes, fused ones too, so nothing is inferred from the
file. Matrix products, attention and convolutions are counted; all other operators together are far below a hundredth of
the multiplications. It measures no time: a profiled run is slower than others.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mechm.bench.limits import Limits
from mechm_runtime.system.telemetry import import_onnxruntime

PRODUCTS = frozenset(("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulNBits", "FusedMatMulActivation"))
INT8_PRODUCTS = frozenset(("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm", "QLinearMatMul"))
CONVOLUTIONS = frozenset(("Conv", "FusedConv"))
ATTENTION = frozenset(("MultiHeadAttention",))
EXPENSIVE = ("MatMul", "Gemm", "Conv", "Attention")
"""Words in the names of operators that would matter; those not listed above are named in `GraphCost.uncounted`."""


@dataclass(frozen=True, slots=True)
class GraphCost:
    """Cost of one run of a graph.

    fp32_operations, int8_operations: a multiplication and an addition count as two. n_bytes: weights of the products,
    and the graph's inputs and outputs, each read or written once. uncounted: operators that should have been counted.
    """

    fp32_operations: int
    int8_operations: int
    n_bytes: int
    uncounted: tuple[str, ...] = ()

    @property
    def operations(self) -> int:
        """fp32 and int8 operations."""
        return self.fp32_operations + self.int8_operations

    def ideal_ms(self, limits: Limits) -> float:
        """The least milliseconds that the run can take on a machine with these limits."""
        compute_s = self.fp32_operations / (limits.fp32_gflops * 1e9) + self.int8_operations / (limits.int8_gops * 1e9)
        return 1000 * max(compute_s, self.n_bytes / (limits.memory_gbs * 1e9))


def graph_cost(path: Path, feeds: Mapping[str, npt.NDArray[Any]]) -> GraphCost:
    """Run a graph once under onnxruntime's profiler and count.

    feeds: arrays by input name; names that the graph does not have are ignored.
    """
    onnxruntime = import_onnxruntime()

    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        wanted = {one.name: np.ascontiguousarray(feeds[one.name]) for one in session.get_inputs()}
        outputs = session.run(None, wanted)
        profile = Path(session.end_profiling())
        events = json.loads(profile.read_text(encoding="utf-8"))
    moved = sum(array.nbytes for array in (*wanted.values(), *(np.asarray(one) for one in outputs)))
    return count_events(events, moved)


def count_events(events: Sequence[Mapping[str, Any]], moved_bytes: int = 0) -> GraphCost:
    """Count the executed nodes of a profile.

    moved_bytes: size of the graph's inputs and outputs.
    """
    operations = {"fp32": 0, "int8": 0}
    weights, uncounted = 0, set()
    for event in events:
        if event.get("cat") != "Node" or not str(event.get("name", "")).endswith("_kernel_time"):
            continue
        arguments = event["args"]
        name = arguments["op_name"]
        inputs, outputs = _shapes(arguments["input_type_shape"]), _shapes(arguments["output_type_shape"])
        if name in PRODUCTS or name in INT8_PRODUCTS:
            kind = "int8" if name in INT8_PRODUCTS else "fp32"
            depth = inputs[0][-1]
            operations[kind] += 2 * math.prod(outputs[0]) * depth
            # A constant matrix was packed when the graph was loaded, and is no longer among the inputs.
            if not any(len(shape) >= 2 for shape in inputs[1:]):
                weights += depth * outputs[0][-1] * (1 if kind == "int8" else 4)
        elif name in CONVOLUTIONS:
            operations["fp32"] += 2 * math.prod(outputs[0]) * math.prod(inputs[1][1:])
            weights += 4 * math.prod(inputs[1])
        elif name in ATTENTION:
            # Two products of (queries, keys, width): the scores, and the scores with the values.
            batch, queries, width = inputs[0]
            operations["fp32"] += 4 * batch * queries * inputs[1][-2] * width
        elif any(word in name for word in EXPENSIVE):
            uncounted.add(name)
    return GraphCost(operations["fp32"], operations["int8"], weights + moved_bytes, tuple(sorted(uncounted)))


def _shapes(described: Sequence[Mapping[str, Sequence[int]]]) -> list[tuple[int, ...]]:
    return [tuple(shape) for one in described for shape in one.values()]
