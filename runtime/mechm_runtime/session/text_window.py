"""The words of the newest utterances, read together: an utterance is read again while it has enough before it.

The text encoder looks both ways, so that what is said later changes how an utterance reads. Reading the whole
conversation again for each utterance would cost more and more; the window is bounded (`SessionConfig.text_tokens`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mechm_runtime.analysis.encoders import Senses
from mechm_runtime.analysis.state import Work
from mechm_runtime.fusion.inputs import FusionInputs
from mechm_runtime.types import Utterance


@dataclass(frozen=True, slots=True)
class Words:
    """What was read of the newest R utterances.

    anew: bool (R,), which count. text: float32 (R, text width). known: bool (R,), which have words at all.
    missing: of the newest.
    """

    anew: npt.NDArray[np.bool_]
    text: npt.NDArray[np.float32]
    known: npt.NDArray[np.bool_]
    missing: Mapping[str, str]

    def of_last(self, n: int) -> Words:
        """Of at most the newest n utterances."""
        rows = slice(max(0, len(self.anew) - n), None)
        return Words(self.anew[rows], self.text[rows], self.known[rows], self.missing)

    def put_into(self, inputs: FusionInputs) -> None:
        """Replace what was known of these utterances, which are the last ones of `inputs`."""
        rows = len(inputs.text) - len(self.anew) + np.flatnonzero(self.anew)
        inputs.text[rows] = self.text[self.anew]
        inputs.text_mask[rows] = self.known[self.anew]


def read_words(
    utterances: Sequence[Utterance], n_tokens: npt.NDArray[np.int64], senses: Senses, budget: int, work: Work
) -> Words:
    """Read the newest utterance with those before it.

    n_tokens: int64 (U,), of each utterance. budget: tokens that may be read together; the newest utterance is read
    whatever its length. work: where the time is counted.
    """
    first = len(utterances) - 1
    total = int(n_tokens[first])
    while first > 0 and total + n_tokens[first - 1] <= budget:
        first -= 1
        total += int(n_tokens[first])
    read = Work.on(utterances[first:], senses.sizes)
    with work.timed("text", total):
        senses.read_text(utterances[first:], read)
    # As in `TextConfig.context_tokens`: what has less before it than this is context alone.
    before = np.concatenate([[0], n_tokens[first:].cumsum()[:-1]])
    anew = (before >= total // 2) | (first == 0)
    anew[-1] = True
    return Words(anew, read.inputs.text, read.inputs.text_mask, read.missing[-1])
