"""Ask the Llama: a conversation in, log-probabilities of the answers out, every question in one forward pass a window.

What runs the graph is given (`engine`); what is asked, and how, is in `questions`. It combines nothing with the
fusion's scores (`combination`) and decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mechm_runtime.engine import GraphRunner
from mechm_runtime.questions import CAUSE_ANSWERS, PackedQuestions, QuestionTokenizer
from mechm_runtime.types import EMOTIONS, Utterance


@dataclass(frozen=True, slots=True)
class LlamaScores:
    """The Llama's answers on a conversation of U utterances.

    asked: bool (U,); only utterances with words are asked about, the rows of the others mean nothing.
    emotions: float32 (U, 7), log-probabilities. causes: float32 (U, answers), log-probabilities, `NO_CAUSE` last.
    """

    asked: npt.NDArray[np.bool_]
    emotions: npt.NDArray[np.float32]
    causes: npt.NDArray[np.float32]


class LlamaReader:
    """Asks about every utterance that has words."""

    def __init__(self, tokenizer: QuestionTokenizer, engine: GraphRunner) -> None:
        self._tokenizer = tokenizer
        self._engine = engine

    def read(self, utterances: Sequence[Utterance], progress: Callable[[int, int], None] | None = None) -> LlamaScores:
        """Score a conversation of any length, window by window.

        progress: called with utterances done and their number.
        """
        n = len(utterances)
        asked = np.array([bool((u.text or "").strip()) for u in utterances])
        emotions = np.zeros((n, len(EMOTIONS)), np.float32)
        causes = np.zeros((n, len(CAUSE_ANSWERS) + 1), np.float32)
        for first, last, core_first, core_last in self._tokenizer.windows(utterances):
            positions = core_first + np.flatnonzero(asked[core_first:core_last])
            if len(positions):
                packed = self._tokenizer.pack(utterances[first:last], (positions - first).tolist())
                outputs = self._engine.run(graph_inputs(packed))
                emotions[positions] = outputs["emotion_log_probabilities"]
                causes[positions] = outputs["cause_log_probabilities"]
            if progress is not None:
                progress(core_last, n)
        return LlamaScores(asked, emotions, causes)

    def overlong(self, utterances: Sequence[Utterance]) -> dict[int, int]:
        """Positions of utterances that are not read as a whole, and how many tokens they have."""
        return self._tokenizer.overlong(utterances)


def graph_inputs(packed: PackedQuestions) -> dict[str, npt.NDArray[np.int64]]:
    """Packed questions as the graph takes them: a batch of one."""
    return {
        "input_ids": packed.input_ids[None],
        "position_ids": packed.position_ids[None],
        "segments": packed.segments[None],
        "emotion_at": packed.emotion_at,
        "cause_at": packed.cause_at,
    }
