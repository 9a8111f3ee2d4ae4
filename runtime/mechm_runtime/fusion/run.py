"""Runs the fusion over a conversation of any length, in overlapping windows.

A conversation longer than the window is scored in windows whose cores tile it; an utterance's scores come from the
window in whose core it lies, so that it has context on both sides and cost grows linearly. The causes of an utterance
are searched inside its window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from mechm_runtime.bundle.config import FusionWindows
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.fusion.inputs import FusionInputs
from mechm_runtime.system.arrays import BoolArray, Float32Array, Int64Array
from mechm_runtime.system.progress import StageProgress
from mechm_runtime.types import EMOTIONS

WINDOWS_PER_RUN = 8
"""Windows of a long conversation that are run at once: bounds memory."""


@dataclass(frozen=True, slots=True)
class FusionScores:
    """Scores of a conversation; U utterances, W the window's width.

    emotion_logits: float32 (U, 7). pair_logits: float32 (U, W), scores of the causes from position first_cause[i] on,
    -inf beyond the conversation. first_cause: int64 (U,). hidden_states: float32 (U, D), of each utterance.
    """

    emotion_logits: Float32Array
    pair_logits: Float32Array
    first_cause: Int64Array
    hidden_states: Float32Array


def window_spans(n_utterances: int, window: int, context: int) -> list[tuple[int, int, int, int]]:
    """Windows as (first, last, core first, core last), ends exclusive; cores tile the conversation."""
    if n_utterances <= window:
        return [(0, n_utterances, 0, n_utterances)]
    core = window - 2 * context
    return [
        (max(0, start - context), min(n_utterances, start + core + context), start, min(n_utterances, start + core))
        for start in range(0, n_utterances, core)
    ]


def run_fusion(
    engine: GraphRunner,
    inputs: FusionInputs,
    sizes: FusionWindows,
    progress: StageProgress | None = None,
    unread: BoolArray | None = None,
) -> FusionScores:
    """Score a conversation.

    progress: called with utterances done and their number. unread: bool (U,), utterances whose scores are of no use:
    windows of nothing else are not run, and have scores of 0 and no pairs.
    """
    n = len(inputs.speaker_ids)
    spans = window_spans(n, sizes.window, sizes.window_context)
    width = max(last - first for first, last, _, _ in spans)
    emotion_logits = np.zeros((n, len(EMOTIONS)), np.float32)
    hidden_states = np.zeros((n, 0), np.float32)
    pair_logits = np.full((n, width), -np.inf, np.float32)
    first_cause = np.zeros(n, np.int64)
    if unread is not None:
        spans = [span for span in spans if not unread[span[2] : span[3]].all()]
    for start in range(0, len(spans), WINDOWS_PER_RUN):
        batch = spans[start : start + WINDOWS_PER_RUN]
        outputs = engine.run(_windows(inputs, batch, width))
        if not hidden_states.size:
            hidden_states = np.zeros((n, outputs["hidden_states"].shape[-1]), np.float32)
        for row, (first, last, core_first, core_last) in enumerate(batch):
            core = slice(core_first - first, core_last - first)
            emotion_logits[core_first:core_last] = outputs["emotion_logits"][row, core]
            hidden_states[core_first:core_last] = outputs["hidden_states"][row, core]
            pair_logits[core_first:core_last, : last - first] = outputs["pair_logits"][row, core, : last - first]
            first_cause[core_first:core_last] = first
        if progress is not None:
            progress(batch[-1][3], n)
    return FusionScores(emotion_logits, pair_logits, first_cause, hidden_states)


def _windows(
    inputs: FusionInputs, spans: Sequence[tuple[int, int, int, int]], width: int
) -> dict[str, npt.NDArray[np.generic]]:
    batch: dict[str, npt.NDArray[np.generic]] = {}
    for item in fields(inputs):
        values = getattr(inputs, item.name)
        padded = np.zeros((len(spans), width, *values.shape[1:]), values.dtype)
        for row, (first, last, _, _) in enumerate(spans):
            padded[row, : last - first] = values[first:last]
        batch[item.name] = padded
    mask = np.zeros((len(spans), width), bool)
    for row, (first, last, _, _) in enumerate(spans):
        mask[row, : last - first] = True
    batch["utterance_mask"] = mask
    return batch
