"""The utterances that a session has in view, and all that is known of them. It never changes: it grows into another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mechm_runtime.bundle.config import FusionWindows
from mechm_runtime.fusion.inputs import FusionInputs, speaker_numbers
from mechm_runtime.llm.scorer import LlamaScores, SoftTokens
from mechm_runtime.types import Utterance


@dataclass(frozen=True, slots=True)
class View:
    """The newest U utterances of a conversation.

    first: how many utterances were there before these. llm_first: how many before the first that the Llama has read;
        less than `first` where that is out of view by now.
    inputs: what the encoders found. missing: modality -> why it is missing, an utterance at a time.
    n_tokens: int64 (U,), the text encoder's tokens of each. soft: as the Llama reads it; None for one that reads words
        alone. answers: the Llama's newest on each.
    told: emotion and ids of the causes of each, as the caller was last told.
    """

    first: int
    llm_first: int
    utterances: tuple[Utterance, ...]
    inputs: FusionInputs
    missing: tuple[Mapping[str, str], ...]
    n_tokens: npt.NDArray[np.int64]
    soft: SoftTokens | None
    answers: LlamaScores
    told: tuple[tuple[str | None, tuple[int, ...]], ...]

    @classmethod
    def empty(cls, sizes: FusionWindows, soft_shape: tuple[int, int] | None) -> View:
        """Nothing said yet.

        soft_shape: soft tokens an utterance, and their width; None for a Llama that reads words alone.
        """
        soft = None if soft_shape is None else SoftTokens(np.zeros((0, *soft_shape), np.float32), np.zeros(0, bool))
        nothing = FusionInputs.absent((), sizes)
        return cls(0, 0, (), nothing, (), np.zeros(0, np.int64), soft, LlamaScores.unasked(0), ())

    def __len__(self) -> int:
        return len(self.utterances)

    @property
    def n_bytes(self) -> int:
        """Memory that the arrays take."""
        arrays = [getattr(self.inputs, name) for name in FusionInputs.__slots__]
        arrays += [self.answers.asked, self.answers.emotions, self.answers.causes, self.n_tokens]
        arrays += [] if self.soft is None else [self.soft.tokens, self.soft.evident]
        return sum(array.nbytes for array in arrays)

    def with_new(
        self, utterance: Utterance, inputs: FusionInputs, missing: Mapping[str, str], n_tokens: int, turns: int
    ) -> View:
        """This view with one utterance more at its end, and without what is then too old.

        inputs: of that utterance alone. turns: utterances to keep.
        """
        gone = max(0, len(self) + 1 - turns)
        kept = slice(gone, None)
        utterances = (*self.utterances[kept], utterance)
        joined = self.inputs.of(kept).followed_by(inputs)
        # Numbers mean nothing but who is whom, and those who left free theirs.
        joined.speaker_ids[:] = speaker_numbers(utterances)
        soft = self.soft
        if soft is not None:
            room = np.zeros((1, *soft.tokens.shape[1:]), np.float32)
            soft = SoftTokens(
                np.concatenate([soft.tokens[kept], room]), np.concatenate([soft.evident[kept], np.zeros(1, bool)])
            )
        one, old = LlamaScores.unasked(1), self.answers
        answers = LlamaScores(
            np.concatenate([old.asked[kept], one.asked]),
            np.concatenate([old.emotions[kept], one.emotions]),
            np.concatenate([old.causes[kept], one.causes]),
        )
        return View(
            self.first + gone,
            self.llm_first,
            utterances,
            joined,
            (*self.missing[kept], missing),
            np.concatenate([self.n_tokens[kept], np.array([n_tokens], np.int64)]),
            soft,
            answers,
            (*self.told[kept], (None, ())),
        )
