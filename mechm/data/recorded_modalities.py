"""Evidence out of real recordings: each utterance's own voice, faces and frames, where it has them.

Conversations without any recording get theirs from another source (`mechm.data.simulated_modalities.EvidenceSampler`).
Real evidence is hidden now and then, so that the fusion does not come to need it, and so is the text. What is hidden is
masked, as in the runtime: nothing here invents a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mechm.data.feature_extraction import span_of
from mechm.data.feature_store import FeatureTable
from mechm.data.simulated_modalities import Evidence, EvidenceSource, no_evidence
from mechm.model.config import ModelConfig
from mechm_runtime.types import LabelledConversation

MODALITIES = ("audio", "scene", "face")


@dataclass(frozen=True, slots=True)
class ClipEvidenceConfig:
    """How often real evidence is hidden; each of voice, faces and frames is drawn on its own.

    conversation_dropout: share of the conversations that are read without a modality as a whole.
    utterance_dropout: share of the other utterances that are read without it.
    text_dropout: share of the utterances with a voice or a face left that are read without their text.

    Raises: ValueError: a rate outside [0, 1].
    """

    conversation_dropout: float = 0.2
    utterance_dropout: float = 0.1
    text_dropout: float = 0.1

    def __post_init__(self) -> None:
        for item in fields(self):
            if not 0 <= getattr(self, item.name) <= 1:
                raise ValueError(f"{item.name}={getattr(self, item.name)} is not in [0, 1]")


class ClipEvidence:
    """Gives utterances what their recordings hold; an `EvidenceSource`.

    table: features of every usable recording. fallback: for conversations without one; None gives them no evidence.
    """

    def __init__(
        self,
        model: ModelConfig,
        table: FeatureTable,
        config: ClipEvidenceConfig,
        fallback: EvidenceSource | None = None,
    ) -> None:
        self._model = model
        self._table = table
        self._config = config
        self._fallback = fallback

    def sample(
        self,
        group: Sequence[LabelledConversation],
        emotions: npt.NDArray[np.int64],
        random: np.random.Generator,
    ) -> tuple[Evidence, Tensor]:
        """See `EvidenceSource.sample`."""
        rows = self._rows(group, emotions.shape[1])
        evidence = self._gather(rows)
        for name in MODALITIES:
            mask = getattr(evidence, f"{name}_mask")
            hidden = random.random((len(group), 1)) < self._config.conversation_dropout
            hidden = hidden | (random.random(rows.shape) < self._config.utterance_dropout)
            mask &= ~torch.from_numpy(hidden).view(*rows.shape, *(1 for _ in mask.shape[2:]))
        dropped = torch.from_numpy(random.random(rows.shape) < self._config.text_dropout)
        dropped &= evidence.audio_mask | evidence.face_mask.any(-1)
        without = np.flatnonzero((rows < 0).all(1)).tolist()
        if self._fallback is not None and without:
            other, other_dropped = self._fallback.sample([group[at] for at in without], emotions[without], random)
            at = torch.tensor(without)
            for item in fields(Evidence):
                getattr(evidence, item.name)[at] = getattr(other, item.name)
            dropped[at] = other_dropped
        return evidence, dropped

    def of(self, group: Sequence[LabelledConversation], n_utterances: int) -> Evidence:
        """All that the recordings of B conversations hold, nothing hidden and nothing drawn, for scoring.

        n_utterances: U, to which the conversations are padded.
        """
        return self._gather(self._rows(group, n_utterances))

    def _rows(self, group: Sequence[LabelledConversation], n_utterances: int) -> npt.NDArray[np.int64]:
        """int64 (B, U): rows of the table, -1 where there is none."""
        rows = np.full((len(group), n_utterances), -1, np.int64)
        for b, labelled in enumerate(group):
            for i, utterance in enumerate(labelled.conversation.utterances):
                span = span_of(labelled.conversation, utterance)
                if span is not None:
                    rows[b, i] = self._table.row_of.get(span, -1)
        return rows

    def _gather(self, rows: npt.NDArray[np.int64]) -> Evidence:
        evidence = no_evidence(self._model, (rows.shape[0], rows.shape[1]))
        at = torch.from_numpy(np.argwhere(rows >= 0)).unbind(1)
        taken = rows[rows >= 0]
        for name in MODALITIES:
            for field in (name, f"{name}_mask"):
                part = getattr(evidence, field)
                part[at] = torch.from_numpy(self._table.arrays[field][taken]).to(part.dtype)
        return evidence
