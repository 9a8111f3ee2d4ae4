"""The outputs of a module and their axes, found by running it at two sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mechm_export.encoders.architectures import CLASSIFICATION, Modality, Task
from mechm_export.encoders.axes import BATCH
from mechm_export.graphs.part import ExportPart
from mechm_runtime.bundle.manifest import Tensor
from mechm_runtime.errors import WeightsError

LOGITS = "logits"
VECTORS: dict[Modality, str] = {"text": "sentence_embedding", "vision": "image_embeds", "audio": "audio_embeds"}
POSITIONS = "positions"
"""A dynamic axis of an output that is as long as no input's."""


def with_outputs(part: ExportPart, task: Task, modality: Modality) -> ExportPart:
    """The part with its outputs.

    Raises: WeightsError: its answers differ from call to call, or have no axis for the batch.
    """
    names = _names(task, modality)
    placeholders = tuple(Tensor(name, "float32", ()) for name in names)
    part = replace(part, outputs=placeholders)
    first, second = _probe_sizes(part)
    feeds = part.trial_inputs(first, np.random.default_rng(0))
    answers, again = part.reference(feeds), part.reference(feeds)
    if any(not np.array_equal(values, again[name], equal_nan=True) for name, values in answers.items()):
        raise WeightsError(
            "the model's answers differ from call to call", hint="it draws random numbers, as for training"
        )
    others = part.reference(part.trial_inputs(second, np.random.default_rng(0))) if second else answers
    outputs = tuple(
        Tensor(name, str(values.dtype), _axes(values.shape, others[name].shape, first, second, part))
        for name, values in answers.items()
    )
    return replace(part, outputs=outputs)


def _names(task: Task, modality: Modality) -> tuple[str, ...]:
    if task in CLASSIFICATION.values():
        return (LOGITS,)
    if task != "feature-extraction":
        return (VECTORS[modality],)
    return ("last_hidden_state", "position_mask") if modality == "audio" else ("last_hidden_state",)


def _probe_sizes(part: ExportPart) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Two sizes that differ on every dynamic axis: the first that is tried, and one with more inputs."""
    first = part.trial_sizes[0]
    return first, {axis: size + 3 if axis == BATCH else max(1, size * 2 // 3) for axis, size in first.items()}


def _axes(
    shape: tuple[int, ...],
    other: tuple[int, ...],
    first: Mapping[str, int],
    second: Mapping[str, int],
    part: ExportPart,
) -> tuple[int | str, ...]:
    axes: list[int | str] = []
    for one, two in zip(shape, other, strict=True):
        if one == two:
            axes.append(one)
            continue
        same = [axis for axis in first if (first[axis], second[axis]) == (one, two)]
        axes.append(same[0] if same else POSITIONS)
    if axes and isinstance(batch := part.inputs[0].axes[0], str) and axes[0] != batch:
        raise WeightsError(f"an output of shape {shape} has no axis for the batch of {first[batch]}")
    return tuple(axes)
