"""Running the quality gate on an exported bundle: which precisions pass on conversations, and which parts fail.

The comparison itself is `comparison`; `bundle` decides what happens to a part that fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mechm_export.gate.check_set import CheckSet
from mechm_export.gate.comparison import TaskCheck, check_task, engine_for, torch_pipeline
from mechm_export.graphs.part import ExportPart
from mechm_export.precision.simulated import SimulatedHalfRunner
from mechm_runtime.bundle.manifest import Bundle, PartFiles
from mechm_runtime.bundle.precision import HALF, PORTABLE_INT8
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.engines.part_loader import PartLoader
from mechm_runtime.errors import VerificationError
from mechm_runtime.pipeline import Pipeline
from mechm_runtime.types import Analysis

LOWER_PRECISIONS = ("int8", PORTABLE_INT8, *HALF)
"""Precisions below fp32."""

Graph = tuple[str, str]
"""Names of a part and of one of its precisions."""


@dataclass(frozen=True, slots=True)
class TorchReference:
    """Torch's answers on a check set: on the annotated text, and on the recordings."""

    checks: CheckSet
    text: tuple[Analysis, ...]
    recorded: tuple[Analysis, ...]


def torch_reference(bundle: Bundle, parts: Iterable[ExportPart], checks: CheckSet) -> TorchReference:
    """Analyse a check set with the runtime's pipeline on the torch modules of a bundle's parts."""
    pipeline = torch_pipeline(bundle, parts)
    return TorchReference(
        checks,
        tuple(pipeline.analyze(one.conversation) for one in checks.labelled),
        tuple(pipeline.analyze(conversation) for conversation in checks.recorded),
    )


def run_gate(
    bundle: Bundle, reference: TorchReference, *, accept_quality_loss: bool = False
) -> tuple[list[TaskCheck], dict[Graph, str]]:
    """Compare fp32, int8 and w8 with torch; where a lower precision fails as a whole, find the parts that fail.

    accept_quality_loss: parts that fail are kept all the same, and measured with the others.
    Returns: the checks of what is kept, and the graphs that fail with the reason.
    Raises: VerificationError: fp32 changes answers.
    """
    tasks = list(compare(bundle, reference, dict.fromkeys(bundle.parts, "fp32")))
    if problems := problems_of(tasks):
        raise VerificationError(f"fp32: {'; '.join(problems)}")
    failed: dict[Graph, str] = {}
    for precision in ("int8", PORTABLE_INT8):
        wanted = {name: precision for name, part in bundle.parts.items() if precision in part.files}
        lower, reasons = select_passing_parts(bundle, reference, wanted)
        if reasons and accept_quality_loss:
            lower = list(compare(bundle, reference, _precisions(bundle, wanted, list(wanted))))
        tasks += lower
        failed |= {(name, precision): reason for name, reason in reasons.items()}
    return tasks, failed


def select_passing_parts(
    bundle: Bundle, reference: TorchReference, wanted: Mapping[str, str]
) -> tuple[list[TaskCheck], dict[str, str]]:
    """Select the parts that may have these precisions together.

    wanted: part -> precision; all other parts are in fp32.
    Returns: the checks of the selected parts together, and part -> reason for those that fail.
    """
    names = list(wanted)
    failed: dict[str, str] = {}
    alone: dict[str, list[TaskCheck]] = {}
    while len(failed) < len(names):
        lower = list(compare(bundle, reference, _precisions(bundle, wanted, [n for n in names if n not in failed])))
        problems = problems_of(lower)
        if not problems:
            return lower, failed
        alone = alone or {name: list(compare(bundle, reference, _precisions(bundle, wanted, [name]))) for name in names}
        remaining = {name: checks for name, checks in alone.items() if name not in failed}
        failing = {name: found[0] for name, checks in remaining.items() if (found := problems_of(checks))}
        if not failing:  # each passes alone and they fail together: the one that changes most fails
            worst = max(remaining, key=lambda name: max(check.changes for check in remaining[name]))
            failing = {worst: f"together with other parts, {problems[0]}"}
        failed |= failing
    return [], failed


def _precisions(bundle: Bundle, wanted: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """The wanted precisions of the named parts, and fp32 for all others."""
    return {other: wanted[other] if other in names else "fp32" for other in bundle.parts}


def problems_of(tasks: Iterable[TaskCheck]) -> list[str]:
    """The problems of the checks that fail."""
    return [task.problem for task in tasks if task.problem]


def compare(bundle: Bundle, reference: TorchReference, precisions: Mapping[str, str | None]) -> Iterator[TaskCheck]:
    """Compare answers of the bundle's graphs with torch's, on text first and on recordings second.

    precisions: part -> precision, None for the part's default. 16-bit graphs are rounded as a GPU rounds them. A check
    is named after the first of LOWER_PRECISIONS that is among the precisions.
    """
    name = next((lower for lower in LOWER_PRECISIONS if lower in precisions.values()), "fp32")
    name = "default" if None in precisions.values() else name
    chosen = {part: precision or bundle.parts[part].default for part, precision in precisions.items()}
    halves = {part: precision for part, precision in chosen.items() if precision in HALF}
    engine = engine_for(name)
    others = {part: precision for part, precision in chosen.items() if part not in halves}
    loader = PartLoader(bundle, others, engine)

    def load(part: PartFiles) -> GraphRunner:
        half = halves.get(part.name)
        return loader(part) if half is None else SimulatedHalfRunner(bundle.path(part.files[half]))

    # Reads every modality and asks the Llama about every utterance, so that every part is compared.
    candidate = Pipeline(
        bundle,
        precisions=others,
        engine=engine,
        modalities=bundle.modalities,
        asked_below=1.0,
        load_part=load if halves else None,
    )
    checks = reference.checks
    conversations = [one.conversation for one in checks.labelled]
    yield check_task(checks.name, name, conversations, reference.text, candidate, checks.labelled)
    if checks.recorded:
        yield check_task(f"{checks.name}, recordings", name, checks.recorded, reference.recorded, candidate)
