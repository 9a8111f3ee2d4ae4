"""Judge the precisions of an exported bundle on conversations, and find the parts to blame.

The comparison itself is `comparison`; what happens to a precision that fails is `bundle`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mechm_export.check_data import check_conversations
from mechm_export.gate.comparison import TaskCheck, check_task, engine_for, torch_pipeline
from mechm_export.parts import ModelParts
from mechm_export.precision.simulated import SimulatedHalfRunner
from mechm_runtime.bundle.manifest import Bundle, PartFiles
from mechm_runtime.bundle.precision import HALF, W8
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.engines.part_loader import PartLoader
from mechm_runtime.errors import VerificationError
from mechm_runtime.pipeline import Pipeline
from mechm_runtime.types import Analysis, Conversation, LabelledConversation

SHIPPED_SPLIT = "mechm check conversations"

LOWER = ("int8", W8, *HALF)
"""Precisions below fp32."""

Graph = tuple[str, str]
"""A part and one of its precisions."""


@dataclass(frozen=True, slots=True)
class CheckSet:
    """Conversations on which precisions are judged.

    name: the split, as the manifest carries it. labelled: annotated text. recorded: conversations with media.
    """

    name: str
    labelled: tuple[LabelledConversation, ...]
    recorded: tuple[Conversation, ...] = ()


def shipped_check_set() -> CheckSet:
    """The conversations that come with this package."""
    return CheckSet(SHIPPED_SPLIT, check_conversations())


@dataclass(frozen=True, slots=True)
class Reference:
    """Torch's answers on a check set."""

    checks: CheckSet
    text: tuple[Analysis, ...]
    recorded: tuple[Analysis, ...]


def ask_torch(bundle: Bundle, model: ModelParts, checks: CheckSet) -> Reference:
    """Analyse a check set with the runtime's pipeline on torch modules."""
    pipeline = torch_pipeline(bundle, model)
    return Reference(
        checks,
        tuple(pipeline.analyze(one.conversation) for one in checks.labelled),
        tuple(pipeline.analyze(conversation) for conversation in checks.recorded),
    )


def judge(
    bundle: Bundle, reference: Reference, *, accept_quality_loss: bool = False
) -> tuple[list[TaskCheck], dict[Graph, str]]:
    """Judge fp32, int8 and w8; where a lower one as a whole is not good enough, find the parts to blame.

    accept_quality_loss: what is to blame is kept all the same.
    Returns: the checks of what is kept, and why graphs are to blame.
    Raises: VerificationError: fp32 changes answers.
    """
    tasks = list(compare(bundle, reference, dict.fromkeys(bundle.parts, "fp32")))
    if wrong := problems_of(tasks):
        raise VerificationError(f"fp32: {'; '.join(wrong)}")
    refused: dict[Graph, str] = {}
    for precision in ("int8", W8):
        wanted = {name: precision for name, part in bundle.parts.items() if precision in part.files}
        lower, reasons = sift(bundle, reference, wanted)
        if reasons and accept_quality_loss:
            lower = list(compare(bundle, reference, _only(bundle, wanted, list(wanted))))
        tasks += lower
        refused |= {(name, precision): reason for name, reason in reasons.items()}
    return tasks, refused


def sift(bundle: Bundle, reference: Reference, wanted: Mapping[str, str]) -> tuple[list[TaskCheck], dict[str, str]]:
    """Checks of the parts that may have these precisions together, and part -> why others may not.

    wanted: part -> precision; all other parts are in fp32.
    """
    names = list(wanted)
    refused: dict[str, str] = {}
    alone: dict[str, list[TaskCheck]] = {}
    while len(refused) < len(names):
        lower = list(compare(bundle, reference, _only(bundle, wanted, [n for n in names if n not in refused])))
        problems = problems_of(lower)
        if not problems:
            return lower, refused
        alone = alone or {name: list(compare(bundle, reference, _only(bundle, wanted, [name]))) for name in names}
        left = {name: checks for name, checks in alone.items() if name not in refused}
        blamed = {name: found[0] for name, checks in left.items() if (found := problems_of(checks))}
        if not blamed:  # each passes alone, together they are too much: the one that changes most goes
            worst = max(left, key=lambda name: max(check.changes for check in left[name]))
            blamed = {worst: f"together with other parts, {problems[0]}"}
        refused |= blamed
    return [], refused


def _only(bundle: Bundle, wanted: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    return {other: wanted[other] if other in names else "fp32" for other in bundle.parts}


def problems_of(tasks: Iterable[TaskCheck]) -> list[str]:
    """Why checks fail, for those that do."""
    return [task.problem for task in tasks if task.problem]


def compare(bundle: Bundle, reference: Reference, precisions: Mapping[str, str | None]) -> Iterator[TaskCheck]:
    """Torch against the bundle's graphs, text first, recordings second; a precision of None is the part's default.

    What has 16 bits is rounded as a GPU rounds it. A check is named by the first of `LOWER` that is among the
    precisions.
    """
    name = next((lower for lower in LOWER if lower in precisions.values()), "fp32")
    name = "default" if None in precisions.values() else name
    chosen = {part: precision or bundle.parts[part].default for part, precision in precisions.items()}
    halves = {part: precision for part, precision in chosen.items() if precision in HALF}
    engine = engine_for(name)
    others = {part: precision for part, precision in chosen.items() if part not in halves}
    loader = PartLoader(bundle, others, engine)

    def load(part: PartFiles) -> GraphRunner:
        half = halves.get(part.name)
        return loader(part) if half is None else SimulatedHalfRunner(bundle.path(part.files[half]))

    # Reads all that it can and asks about everything, so that everything is judged.
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
