"""The 16-bit graphs of a bundle, for onnxruntime's CUDA provider: fp16 where answers stay the same, else bf16 or none.

They are written and judged without a GPU: every value is rounded as a GPU rounds it (`precision.rounded`). How fast
they are, and that CUDA takes every operator, is seen on a GPU alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from mechm_export.bundle.manifest import graph_name, write_manifest
from mechm_export.gate.comparison import TaskCheck, ValueCheck, check_values
from mechm_export.gate.judge import Graph, Reference, compare, sift
from mechm_export.parts import ModelParts
from mechm_export.precision.half import HalfPrecision
from mechm_export.precision.lower import lower_graph
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.errors import VerificationError

CUDA_LACKS: Mapping[HalfPrecision, frozenset[str]] = {
    "fp16": frozenset(("Swish",)),
    "bf16": frozenset(
        (
            *("Clip", "ConvTranspose", "DepthToSpace", "Einsum", "Elu", "LeakyRelu", "MaxPool", "PRelu", "Pad"),
            *("SpaceToDepth", "Swish"),
        )
    ),
}
"""Operators that ONNX has in 16 bits and the CUDA provider has not, of those that are lowered (onnxruntime's
`docs/OperatorKernels.md`). They stay in fp32: onnxruntime would run them on the CPU, or refuse the graph."""


@dataclass(slots=True)
class HalfParts:
    """What was made.

    chosen: part -> its 16-bit precision. refused: why a graph was left out. accepted: what is wrong with one that is
    kept all the same.
    """

    chosen: dict[str, HalfPrecision] = field(default_factory=dict)
    values: dict[str, ValueCheck] = field(default_factory=dict)
    tasks: list[TaskCheck] = field(default_factory=list)
    refused: dict[Graph, str] = field(default_factory=dict)
    accepted: dict[Graph, str] = field(default_factory=dict)


def write_half_parts(
    model: ModelParts,
    staging: Path,
    reference: Reference,
    written: Mapping[str, list[str]],
    step: Callable[[str], None],
    *,
    accept_quality_loss: bool = False,
) -> HalfParts:
    """Write one 16-bit graph a part where one is good enough, beside those in fp32.

    staging: the bundle's folder, with a manifest of what was written before. reference: torch's answers. written: part
    -> the precisions that were. accept_quality_loss: what overflows nowhere is good enough.
    """
    made = HalfParts()
    waiting: dict[str, HalfPrecision] = {part.name: "fp16" for part in model}
    while waiting:
        for part in model:
            if part.name in waiting:
                _write(made, model, part.name, staging, waiting[part.name], step)
        write_manifest(
            staging,
            model,
            {
                name: [*others, *([made.chosen[name]] if name in made.chosen else [])]
                for name, others in written.items()
            },
            [],
            [],
        )
        step(f"comparing answers in 16 bits on {reference.checks.name}")
        bundle = open_bundle(staging, check_hashes=False)
        made.tasks, failed = sift(bundle, reference, made.chosen)
        if failed and accept_quality_loss:
            made.accepted = {(name, made.chosen[name]): reason for name, reason in failed.items()}
            precisions = {name: made.chosen.get(name, "fp32") for name in bundle.parts}
            made.tasks = list(compare(bundle, reference, precisions))
            break
        waiting = {}
        for name, reason in failed.items():
            precision = made.chosen[name]
            _refuse(made, name, precision, reason, staging)
            if precision == "fp16":
                waiting[name] = "bf16"
    return made


def write_half(source: Path, target: Path, precision: HalfPrecision) -> None:
    """Write a graph in 16 bits, in operators that the CUDA provider has in them; inputs and outputs stay float32.

    Raises: VerificationError: it has nothing that can be computed so.
    """
    graph = onnx.load(source, load_external_data=False).graph
    kept = [node.name for node in graph.node if node.op_type in CUDA_LACKS[precision]]
    lower_graph(source, target, precision, fp32_nodes=kept)


def _write(
    made: HalfParts, model: ModelParts, name: str, staging: Path, first: HalfPrecision, step: Callable[[str], None]
) -> None:
    """Write and compare a part in the first precision that overflows nowhere."""
    part = next(part for part in model if part.name == name)
    tried: tuple[HalfPrecision, ...] = ("fp16", "bf16") if first == "fp16" else ("bf16",)
    for precision in tried:
        step(f"{name}: exporting {precision}")
        path = _path(staging, name, precision)
        try:
            write_half(_path(staging, name, "fp32"), path, precision)
            made.values[name] = check_values(part, path, precision)
        except VerificationError as error:
            _refuse(made, name, precision, str(error), staging)
            continue
        made.chosen[name] = precision
        return


def _refuse(made: HalfParts, name: str, precision: HalfPrecision, reason: str, staging: Path) -> None:
    made.refused[name, precision] = reason
    made.chosen.pop(name, None)
    made.values.pop(name, None)
    _path(staging, name, precision).unlink(missing_ok=True)


def _path(folder: Path, part: str, precision: str) -> Path:
    return folder.joinpath(*graph_name(part, precision).split("/"))
