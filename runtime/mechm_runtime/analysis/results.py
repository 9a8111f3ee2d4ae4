"""Decided scores as the result says them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mechm_runtime.fusion.decision import Decision
from mechm_runtime.fusion.inputs import FusionInputs
from mechm_runtime.types import EMOTIONS, MODALITIES, Pair, Utterance, UtteranceAnalysis


def answers(
    utterances: Sequence[Utterance],
    inputs: FusionInputs,
    missing: Sequence[dict[str, str]],
    decision: Decision,
    modalities: Sequence[str],
) -> tuple[tuple[UtteranceAnalysis, ...], tuple[Pair, ...]]:
    """What was found, an utterance at a time, and the pairs among them.

    modalities: which the pipeline uses.
    """
    used = {
        "text": inputs.text_mask,
        "audio": inputs.audio_mask,
        "face": np.asarray(inputs.face_mask.any(-1)),
        "scene": np.asarray(inputs.scene_mask.any(-1)),
    }
    labels = [None if label < 0 else EMOTIONS[label] for label in decision.labels.tolist()]
    found = tuple(
        UtteranceAnalysis(
            id=u.id,
            speaker=u.speaker,
            text=u.text,
            start_s=u.start_s,
            end_s=u.end_s,
            emotion=labels[i],
            probabilities=dict(zip(EMOTIONS, decision.probabilities[i].tolist(), strict=True)),
            modalities=tuple(m for m in modalities if used[m][i]),
            missing={m: missing[i][m] for m in (*MODALITIES, "llm") if m in missing[i]},
        )
        for i, u in enumerate(utterances)
    )
    pairs = tuple(Pair(found[i].id, str(labels[i]), found[j].id, probability) for i, j, probability in decision.pairs)
    return found, pairs
