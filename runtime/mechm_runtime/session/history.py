"""The utterances that a session keeps, with their encoder outputs, LLM answers and last reported results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mechm_runtime.bundle.config import FusionWindows
from mechm_runtime.fusion.inputs import FusionInputs, speaker_numbers
from mechm_runtime.llm.scorer import LlamaScores, SoftTokens
from mechm_runtime.system.arrays import Int64Array
from mechm_runtime.types import Utterance


@dataclass(frozen=True, slots=True)
class History:
    """The newest U utterances of a conversation. Immutable; `with_new` returns a longer copy.

    first: number of utterances before these. llm_first: number of utterances before the Llama's context; less than
        `first` where its beginning has been dropped from here.
    inputs: the encoders' outputs. missing: per utterance, modality -> why it is missing.
    n_tokens: int64 (U,), the text encoder's tokens of each. soft: the Llama's soft tokens; None for a Llama that reads
        words alone. answers: the Llama's latest answers.
    last_reported: emotion and ids of the causes of each, as last reported to the caller.
    """

    first: int
    llm_first: int
    utterances: tuple[Utterance, ...]
    inputs: FusionInputs
    missing: tuple[Mapping[str, str], ...]
    n_tokens: Int64Array
    soft: SoftTokens | None
    answers: LlamaScores
    last_reported: tuple[tuple[str | None, tuple[int, ...]], ...]

    @classmethod
    def empty(cls, sizes: FusionWindows, soft_shape: tuple[int, int] | None) -> History:
        """A history without utterances.

        soft_shape: soft tokens per utterance, and their width; None for a Llama that reads words alone.
        """
        soft = None if soft_shape is None else SoftTokens(np.zeros((0, *soft_shape), np.float32), np.zeros(0, bool))
        nothing = FusionInputs.absent((), sizes)
        return cls(0, 0, (), nothing, (), np.zeros(0, np.int64), soft, LlamaScores.empty(0), ())

    def __len__(self) -> int:
        return len(self.utterances)

    @property
    def n_bytes(self) -> int:
        """Bytes of all arrays."""
        arrays = [getattr(self.inputs, name) for name in FusionInputs.__slots__]
        arrays += [self.answers.asked, self.answers.emotions, self.answers.causes, self.n_tokens]
        arrays += [] if self.soft is None else [self.soft.tokens, self.soft.has_nonverbal]
        return sum(array.nbytes for array in arrays)

    def with_new(
        self, utterance: Utterance, inputs: FusionInputs, missing: Mapping[str, str], n_tokens: int, turns: int
    ) -> History:
        """A copy with one utterance added at its end, and without those that are then too old.

        inputs, missing, n_tokens: of the new utterance alone. turns: utterances to keep.
        """
        n_dropped = max(0, len(self) + 1 - turns)
        kept = slice(n_dropped, None)
        utterances = (*self.utterances[kept], utterance)
        joined = self.inputs.select(kept).concatenate(inputs)
        # Numbers only tell speakers apart; those of dropped speakers are used again.
        joined.speaker_ids[:] = speaker_numbers(utterances)
        soft = self.soft
        if soft is not None:
            room = np.zeros((1, *soft.tokens.shape[1:]), np.float32)
            soft = SoftTokens(
                np.concatenate([soft.tokens[kept], room]), np.concatenate([soft.has_nonverbal[kept], np.zeros(1, bool)])
            )
        one, old = LlamaScores.empty(1), self.answers
        answers = LlamaScores(
            np.concatenate([old.asked[kept], one.asked]),
            np.concatenate([old.emotions[kept], one.emotions]),
            np.concatenate([old.causes[kept], one.causes]),
        )
        return History(
            self.first + n_dropped,
            self.llm_first,
            utterances,
            joined,
            (*self.missing[kept], missing),
            np.concatenate([self.n_tokens[kept], np.array([n_tokens], np.int64)]),
            soft,
            answers,
            (*self.last_reported[kept], (None, ())),
        )
