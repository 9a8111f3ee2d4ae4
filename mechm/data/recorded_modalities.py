"""Modalities from real recordings: each utterance's own voice, faces and frames, with modality dropout.

Conversations without any recording get theirs from another source (`mechm.data.simulated_modalities`). Modalities and
text are masked at random, so that the fusion does not come to depend on any of them.
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
from mechm.data.simulated_modalities import NonverbalSource
from mechm.model.config import ModelConfig
from mechm.model.inputs import NonverbalInputs
from mechm_runtime.types import LabelledConversation

MODALITIES = ("audio", "scene", "face")


@dataclass(frozen=True, slots=True)
class ModalityDropoutConfig:
    """Rates of masking modalities; voice, faces and frames are drawn independently.

    conversation_dropout: share of the conversations in which a modality is masked throughout.
    utterance_dropout: share of the other utterances in which it is masked.
    text_dropout: share of the utterances with a remaining voice or face whose text is masked.

    Raises: ValueError: a rate outside [0, 1].
    """

    conversation_dropout: float = 0.2
    utterance_dropout: float = 0.1
    text_dropout: float = 0.1

    def __post_init__(self) -> None:
        for item in fields(self):
            if not 0 <= getattr(self, item.name) <= 1:
                raise ValueError(f"{item.name}={getattr(self, item.name)} is not in [0, 1]")


class RecordedModalities:
    """A `NonverbalSource` that looks utterances up in a table of features.

    table: features of every usable recording. fallback: for conversations without one; None masks their modalities.
    """

    def __init__(
        self,
        model: ModelConfig,
        table: FeatureTable,
        config: ModalityDropoutConfig,
        fallback: NonverbalSource | None = None,
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
    ) -> tuple[NonverbalInputs, Tensor]:
        """See `NonverbalSource.sample`."""
        rows = self._rows(group, emotions.shape[1])
        inputs = self._gather(rows)
        for name in MODALITIES:
            mask = getattr(inputs, f"{name}_mask")
            hidden = random.random((len(group), 1)) < self._config.conversation_dropout
            hidden = hidden | (random.random(rows.shape) < self._config.utterance_dropout)
            mask &= ~torch.from_numpy(hidden).view(*rows.shape, *(1 for _ in mask.shape[2:]))
        dropped = torch.from_numpy(random.random(rows.shape) < self._config.text_dropout)
        dropped &= inputs.audio_mask | inputs.face_mask.any(-1)
        without = np.flatnonzero((rows < 0).all(1)).tolist()
        if self._fallback is not None and without:
            other, other_dropped = self._fallback.sample([group[at] for at in without], emotions[without], random)
            at = torch.tensor(without)
            for item in fields(NonverbalInputs):
                getattr(inputs, item.name)[at] = getattr(other, item.name)
            dropped[at] = other_dropped
        return inputs, dropped

    def of(self, group: Sequence[LabelledConversation], n_utterances: int) -> NonverbalInputs:
        """Return everything that the recordings of B conversations hold, without dropout or fallback, for scoring.

        n_utterances: U, to which the conversations are padded.
        """
        return self._gather(self._rows(group, n_utterances))

    def _rows(self, group: Sequence[LabelledConversation], n_utterances: int) -> npt.NDArray[np.int64]:
        """Look up the utterances' rows in the table: int64 (B, U), -1 where there is none."""
        rows = np.full((len(group), n_utterances), -1, np.int64)
        for b, labelled in enumerate(group):
            for i, utterance in enumerate(labelled.conversation.utterances):
                span = span_of(labelled.conversation, utterance)
                if span is not None:
                    rows[b, i] = self._table.row_of.get(span, -1)
        return rows

    def _gather(self, rows: npt.NDArray[np.int64]) -> NonverbalInputs:
        inputs = NonverbalInputs.absent(self._model, (rows.shape[0], rows.shape[1]))
        at = torch.from_numpy(np.argwhere(rows >= 0)).unbind(1)
        taken = rows[rows >= 0]
        for name in MODALITIES:
            for field in (name, f"{name}_mask"):
                part = getattr(inputs, field)
                part[at] = torch.from_numpy(self._table.arrays[field][taken]).to(part.dtype)
        return inputs
