"""Converts a `Decision` into the public result types."""

from __future__ import annotations

from collections.abc import Sequence

from mechm_runtime.fusion.decision import Decision
from mechm_runtime.fusion.inputs import FusionInputs
from mechm_runtime.types import EMOTIONS, MODALITIES, Pair, Utterance, UtteranceAnalysis


def build_results(
    utterances: Sequence[Utterance],
    inputs: FusionInputs,
    missing: Sequence[dict[str, str]],
    decision: Decision,
    modalities: Sequence[str],
) -> tuple[tuple[UtteranceAnalysis, ...], tuple[Pair, ...]]:
    """One result per utterance, and the pairs among them.

    missing: per utterance, modality -> why it is missing. modalities: those that the pipeline uses.
    """
    known = {modality: inputs.has(modality) for modality in modalities}
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
            modalities=tuple(m for m in modalities if known[m][i]),
            missing={m: missing[i][m] for m in (*MODALITIES, "llm") if m in missing[i]},
        )
        for i, u in enumerate(utterances)
    )
    pairs = tuple(Pair(found[i].id, str(labels[i]), found[j].id, probability) for i, j, probability in decision.pairs)
    return found, pairs
