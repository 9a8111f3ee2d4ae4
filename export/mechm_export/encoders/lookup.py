"""Find the architecture that a config.json names, and the task that it is exported for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from mechm_export.encoders.architectures import (
    ARCHITECTURES,
    CLASSIFICATION,
    EMBEDDING,
    Architecture,
    Modality,
    Task,
)
from mechm_export.encoders.heads import DENSE, OUTPUT
from mechm_runtime.errors import InputError, WeightsError


def find_architecture(model_type: object, task: Task | None, modality: Modality | None) -> tuple[Architecture, Task]:
    """The architecture and task to export: of our own table, else what optimum knows.

    model_type: as config.json has it. task: None for the embedding of what the encoder reads.
    Raises: WeightsError: an unknown architecture. InputError: the task is not one of its, or text and vision fit both.
    """
    kind = model_type if isinstance(model_type, str) else ""
    if task is not None and task in CLASSIFICATION.values():
        return _find_classifier(kind, task, modality), task
    found = _encoders(kind)
    if not found:
        raise _unknown(model_type)
    fitting = [one for one in found if modality in (None, one.modality) and (task is None or task in one.tasks)]
    if not fitting:
        raise InputError(
            f"{model_type} has no {task or 'embedding'}{f' of {modality}' if modality else ''}",
            hint=f"it has {', '.join(_tasks(kind))}",
        )
    if len(fitting) > 1:
        choices = " or ".join(f"--modality {one.modality}" for one in fitting)
        raise InputError(f"{model_type} holds several encoders", hint=f"give {choices}")
    return fitting[0], task or EMBEDDING[fitting[0].modality]


def _find_classifier(model_type: str, task: Task, modality: Modality | None) -> Architecture:
    from mechm_export.encoders.optimum_tasks import classifier_for

    (reads,) = (one for one, classification in CLASSIFICATION.items() if classification == task)
    if modality not in (None, reads):
        raise InputError(f"--task {task} reads {reads}, not {modality}", hint="leave --modality out")
    name = classifier_for(model_type, reads)
    if not name:
        tasks = _tasks(model_type)
        if not tasks:
            raise _unknown(model_type)
        other = next((one for one in tasks if one.endswith("-classification")), tasks[0])
        raise InputError(
            f"{model_type} has no {task}", hint=f"it has {', '.join(tasks)}: --task {other.partition(' ')[0]}"
        )
    known = [one for one in _encoders(model_type) if one.modality == reads]
    base = known[0] if known else Architecture(model_type, "transformers", reads, name)
    return replace(base, family="transformers", loader=name, embedder="", module="transformers")


def _encoders(model_type: str) -> tuple[Architecture, ...]:
    if model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    from mechm_export.encoders.optimum_tasks import find_encoder

    found = find_encoder(model_type)
    return () if found is None else (found,)


def _tasks(model_type: str) -> list[str]:
    """All tasks of an architecture, with the modality where it has several encoders."""
    from mechm_export.encoders.optimum_tasks import classifier_for

    found = _encoders(model_type)
    tasks = [f"{task} of {one.modality}" if len(found) > 1 else task for one in found for task in one.tasks]
    return sorted(tasks) + [task for modality, task in CLASSIFICATION.items() if classifier_for(model_type, modality)]


def _unknown(model_type: object) -> WeightsError:
    return WeightsError(
        f"no export for the architecture {str(model_type)[:80]!r}",
        hint=f"known are {', '.join(ARCHITECTURES)}, and encoders and *Classification classes of transformers that "
        "optimum has a task and a dummy input for",
    )


def classification_task(config: Mapping[str, Any], left_out: Collection[str]) -> str:
    """The task that exports a checkpoint's classification head, or an empty string where it has none.

    config: its config.json. left_out: names of its tensors.
    """
    from mechm_export.encoders.optimum_tasks import task_of_class

    names = config.get("architectures")
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str) and (task := task_of_class(name)) in CLASSIFICATION.values():
            return task
    return CLASSIFICATION["audio"] if {DENSE, OUTPUT} <= set(left_out) else ""
