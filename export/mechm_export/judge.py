"""Judge the precisions of an exported bundle on conversations, and find the parts to blame.

The comparison itself is `gate`; what happens to a precision that fails is `bundle`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mechm_export.data import check_conversations
from mechm_export.gate import TaskCheck, check_task, torch_pipeline
from mechm_export.parts import ModelParts
from mechm_runtime.bundle import Bundle
from mechm_runtime.errors import VerificationError
from mechm_runtime.pipeline import Pipeline
from mechm_runtime.types import Analysis, Conversation, LabelledConversation

SHIPPED_SPLIT = "mechm check conversations"


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


def judge(bundle: Bundle, model: ModelParts, checks: CheckSet) -> tuple[list[TaskCheck], dict[str, str]]:
    """Judge both precisions; where int8 as a whole is not good enough, find the parts to blame.

    Returns: the checks of what is kept, and part -> why its int8 form is refused.
    Raises: VerificationError: fp32 changes answers.
    """
    reference = ask_torch(bundle, model, checks)
    names = [part.name for part in model]
    tasks = list(compare(bundle, reference, dict.fromkeys(names, "fp32")))
    if wrong := problems_of(tasks):
        raise VerificationError(f"fp32: {'; '.join(wrong)}")
    refused: dict[str, str] = {}
    alone: dict[str, list[TaskCheck]] = {}
    while len(refused) < len(names):
        candidates = {name: "fp32" if name in refused else "int8" for name in names}
        lower = list(compare(bundle, reference, candidates))
        problems = problems_of(lower)
        if not problems:
            return tasks + lower, refused
        alone = alone or {name: list(compare(bundle, reference, _alone(name, names))) for name in names}
        left = {name: checks for name, checks in alone.items() if name not in refused}
        blamed = {name: found[0] for name, checks in left.items() if (found := problems_of(checks))}
        if not blamed:  # each passes alone, together they are too much: the one that changes most goes
            worst = max(left, key=lambda name: max(check.changes for check in left[name]))
            blamed = {worst: f"together with other parts, {problems[0]}"}
        refused |= blamed
    return tasks, refused


def _alone(name: str, names: Sequence[str]) -> dict[str, str]:
    return {other: "int8" if other == name else "fp32" for other in names}


def problems_of(tasks: Iterable[TaskCheck]) -> list[str]:
    """Why checks fail, for those that do."""
    return [task.problem for task in tasks if task.problem]


def compare(bundle: Bundle, reference: Reference, precisions: Mapping[str, str | None]) -> Iterator[TaskCheck]:
    """Torch against the bundle's graphs, text first, recordings second; a precision of None is the part's default."""
    candidate = Pipeline(bundle, precisions=precisions)
    lowest = "int8" if "int8" in precisions.values() else "fp32"
    name = "default" if None in precisions.values() else lowest
    checks = reference.checks
    conversations = [one.conversation for one in checks.labelled]
    yield check_task(checks.name, name, conversations, reference.text, candidate, checks.labelled)
    if checks.recorded:
        yield check_task(f"{checks.name}, recordings", name, checks.recorded, reference.recorded, candidate)
