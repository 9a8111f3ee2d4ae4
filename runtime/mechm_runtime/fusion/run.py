"""Run the fusion over a conversation of any length, in overlapping windows.

A conversation longer than the window is read in windows whose cores tile it; an utterance's scores come from the
window in whose core it lies, so that it has context on both sides and cost grows linearly. The causes of an utterance
are looked for inside its window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from mechm_runtime.bundle.open import FusionWindows
from mechm_runtime.engines.onnxruntime_engine import GraphRunner
from mechm_runtime.types import Utterance

WINDOWS_PER_RUN = 8
"""Windows of a long conversation that are run at once: bounds memory."""


@dataclass(slots=True)
class FusionInputs:
    """What is known of each utterance; U utterances. A mask is False where something is absent.

    text float32 (U, text width), text_mask bool (U,); audio float32 (U, audio tokens, audio width), audio_mask (U,);
    scene float32 (U, n_frames, scene width), scene_mask (U, n_frames); face float32 (U, n_frames * max_faces,
    face width), face_mask (U, n_frames * max_faces); speaker_ids int64 (U,).
    """

    text: npt.NDArray[np.float32]
    text_mask: npt.NDArray[np.bool_]
    audio: npt.NDArray[np.float32]
    audio_mask: npt.NDArray[np.bool_]
    scene: npt.NDArray[np.float32]
    scene_mask: npt.NDArray[np.bool_]
    face: npt.NDArray[np.float32]
    face_mask: npt.NDArray[np.bool_]
    speaker_ids: npt.NDArray[np.int64]

    @classmethod
    def absent(cls, utterances: Sequence[Utterance], sizes: FusionWindows) -> FusionInputs:
        """Inputs in which everything is absent but who speaks."""
        n, faces = len(utterances), sizes.n_frames * sizes.max_faces
        return cls(
            text=np.zeros((n, sizes.text_width), np.float32),
            text_mask=np.zeros(n, bool),
            audio=np.zeros((n, sizes.audio_tokens, sizes.audio_width), np.float32),
            audio_mask=np.zeros(n, bool),
            scene=np.zeros((n, sizes.n_frames, sizes.scene_width), np.float32),
            scene_mask=np.zeros((n, sizes.n_frames), bool),
            face=np.zeros((n, faces, sizes.face_width), np.float32),
            face_mask=np.zeros((n, faces), bool),
            speaker_ids=np.array(speaker_numbers(utterances), np.int64),
        )

    def evident(self) -> npt.NDArray[np.bool_]:
        """bool (U,): where something but words is known."""
        return np.asarray(self.audio_mask | self.face_mask.any(-1) | self.scene_mask.any(-1))

    def of(self, rows: slice) -> FusionInputs:
        """What is known of some of the utterances: views of the same arrays."""
        return FusionInputs(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})

    def followed_by(self, later: FusionInputs) -> FusionInputs:
        """What is known of these utterances and then of others: new arrays, `speaker_ids` as they were."""
        return FusionInputs(
            **{
                item.name: np.concatenate([getattr(self, item.name), getattr(later, item.name)])
                for item in fields(self)
            }
        )


@dataclass(frozen=True, slots=True)
class FusionScores:
    """Scores of a conversation; U utterances, W the window's width.

    emotion_logits: float32 (U, 7). pair_logits: float32 (U, W), scores of the causes from position first_cause[i] on,
    -inf beyond the conversation. first_cause: int64 (U,). hidden_states: float32 (U, D), of each utterance.
    """

    emotion_logits: npt.NDArray[np.float32]
    pair_logits: npt.NDArray[np.float32]
    first_cause: npt.NDArray[np.int64]
    hidden_states: npt.NDArray[np.float32]


def speaker_numbers(utterances: Sequence[Utterance]) -> list[int]:
    """A number a speaker, in order of first appearance; an unknown speaker is nobody else's."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(u.speaker or f"\0{i}", len(numbers)) for i, u in enumerate(utterances)]


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
    progress: Callable[[int, int], None] | None = None,
) -> FusionScores:
    """Score a conversation.

    progress: called with utterances done and their number.
    """
    n = len(inputs.speaker_ids)
    spans = window_spans(n, sizes.window, sizes.window_context)
    width = max(last - first for first, last, _, _ in spans)
    # A piece a core; cores come in order.
    emotion_logits: list[npt.NDArray[np.float32]] = []
    hidden_states: list[npt.NDArray[np.float32]] = []
    pair_logits = np.full((n, width), -np.inf, np.float32)
    first_cause = np.zeros(n, np.int64)
    for start in range(0, len(spans), WINDOWS_PER_RUN):
        batch = spans[start : start + WINDOWS_PER_RUN]
        outputs = engine.run(_windows(inputs, batch, width))
        for row, (first, last, core_first, core_last) in enumerate(batch):
            core = slice(core_first - first, core_last - first)
            emotion_logits.append(outputs["emotion_logits"][row, core])
            hidden_states.append(outputs["hidden_states"][row, core])
            pair_logits[core_first:core_last, : last - first] = outputs["pair_logits"][row, core, : last - first]
            first_cause[core_first:core_last] = first
        if progress is not None:
            progress(batch[-1][3], n)
    return FusionScores(np.concatenate(emotion_logits), pair_logits, first_cause, np.concatenate(hidden_states))


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
