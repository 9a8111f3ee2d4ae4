"""The 16-bit graphs of a bundle for onnxruntime's CUDA provider: fp16 where answers stay the same, else bf16 or none.

They are written and checked without a GPU: every value is rounded as a GPU rounds it (`precision.simulated`). How fast
they are, and that CUDA takes every operator, can only be seen on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from mechm_export.bundle.manifest import graph_path, write_manifest
from mechm_export.gate.comparison import TaskCheck, ValueCheck, check_values
from mechm_export.gate.run import Graph, TorchReference, compare, select_passing_parts
from mechm_export.graphs.part import ExportPart
from mechm_export.parts import ModelParts
from mechm_export.precision.half import HalfPrecision
from mechm_export.precision.lower import lower_graph
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.errors import VerificationError

MISSING_CUDA_KERNELS: Mapping[HalfPrecision, frozenset[str]] = {
    "fp16": frozenset(("Swish",)),
    "bf16": frozenset(
        (
            *("Clip", "ConvTranspose", "DepthToSpace", "Einsum", "Elu", "LeakyRelu", "MaxPool", "PRelu", "Pad"),
            *("SpaceToDepth", "Swish"),
        )
    ),
}
"""Operators that ONNX has in 16 bits and the CUDA provider has not (onnxruntime's `docs/OperatorKernels.md`), of those
that are converted. They stay in fp32: onnxruntime would run them on the CPU, or refuse the graph."""


@dataclass(slots=True)
class HalfParts:
    """The 16-bit graphs that were written.

    chosen: part -> its 16-bit precision. values: part -> the comparison of its values. tasks: answers with all of them.
    refused: graphs that were left out, with the reason. accepted: graphs that fail and were written all the same.
    """

    chosen: dict[str, HalfPrecision] = field(default_factory=dict)
    values: dict[str, ValueCheck] = field(default_factory=dict)
    tasks: list[TaskCheck] = field(default_factory=list)
    refused: dict[Graph, str] = field(default_factory=dict)
    accepted: dict[Graph, str] = field(default_factory=dict)


def write_half_parts(
    model: ModelParts,
    staging: Path,
    reference: TorchReference,
    written: Mapping[str, list[str]],
    step: Callable[[str], None],
    *,
    accept_quality_loss: bool = False,
) -> HalfParts:
    """Write one 16-bit graph per part beside its other graphs, where one is good enough.

    staging: the bundle's folder, with a manifest of what was written before. reference: torch's answers. written: part
    -> the precisions written before. accept_quality_loss: keep graphs that change answers, if no value overflows.
    """
    half = HalfParts()
    pending: dict[str, HalfPrecision] = {part.name: "fp16" for part in model}
    while pending:
        for part in model:
            if part.name in pending:
                _write_part(half, part, staging, pending[part.name], step)
        precisions = {
            name: [*others, *([half.chosen[name]] if name in half.chosen else [])] for name, others in written.items()
        }
        write_manifest(staging, model, precisions, [], [])
        step(f"comparing answers in 16 bits on {reference.checks.name}")
        bundle = open_bundle(staging, check_hashes=False)
        half.tasks, failed = select_passing_parts(bundle, reference, half.chosen)
        if failed and accept_quality_loss:
            half.accepted = {(name, half.chosen[name]): reason for name, reason in failed.items()}
            half.tasks = list(
                compare(bundle, reference, {name: half.chosen.get(name, "fp32") for name in bundle.parts})
            )
            break
        pending = {}
        for name, reason in failed.items():
            precision = half.chosen[name]
            _refuse(half, name, precision, reason, staging)
            if precision == "fp16":
                pending[name] = "bf16"
    return half


def write_half(source: Path, target: Path, precision: HalfPrecision) -> None:
    """Write a graph in 16 bits, in operators for which the CUDA provider has kernels; inputs and outputs stay float32.

    Raises: VerificationError: nothing in it can be computed in 16 bits.
    """
    graph = onnx.load(source, load_external_data=False).graph
    fp32_nodes = [node.name for node in graph.node if node.op_type in MISSING_CUDA_KERNELS[precision]]
    lower_graph(source, target, precision, fp32_nodes=fp32_nodes)


def _write_part(
    half: HalfParts, part: ExportPart, staging: Path, first: HalfPrecision, step: Callable[[str], None]
) -> None:
    """Write a part in the first precision in which no value overflows, and compare its values."""
    candidates: tuple[HalfPrecision, ...] = ("fp16", "bf16") if first == "fp16" else ("bf16",)
    for precision in candidates:
        step(f"{part.name}: exporting {precision}")
        path = graph_path(staging, part.name, precision)
        try:
            write_half(graph_path(staging, part.name, "fp32"), path, precision)
            half.values[part.name] = check_values(part, path, precision)
        except VerificationError as error:
            _refuse(half, part.name, precision, str(error), staging)
            continue
        half.chosen[part.name] = precision
        return


def _refuse(half: HalfParts, name: str, precision: HalfPrecision, reason: str, staging: Path) -> None:
    half.refused[name, precision] = reason
    half.chosen.pop(name, None)
    half.values.pop(name, None)
    graph_path(staging, name, precision).unlink(missing_ok=True)
