"""The words of the newest utterances, encoded together; earlier ones are encoded again while enough context precedes.

The text encoder is bidirectional, so that later words change the states of earlier ones. Encoding the whole
conversation again for each utterance would cost more and more; the window is bounded (`SessionConfig.text_tokens`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mechm_runtime.analysis.encoders import ModalityEncoders
from mechm_runtime.fusion.inputs import FusionInputs
from mechm_runtime.system.arrays import BoolArray, Float32Array, Int64Array
from mechm_runtime.system.time_limit import current_limit
from mechm_runtime.types import Utterance


@dataclass(frozen=True, slots=True)
class TextWindow:
    """Encoded words of the newest R utterances.

    is_updated: bool (R,), True where the new vector replaces the former one. text: float32 (R, text width).
    has_text: bool (R,). missing: reasons of the newest utterance. is_whole: whether nothing was left out for the time
    limit of the request.
    """

    is_updated: BoolArray
    text: Float32Array
    has_text: BoolArray
    missing: Mapping[str, str]
    is_whole: bool

    def last(self, n: int) -> TextWindow:
        """The window of at most the newest n utterances."""
        rows = slice(max(0, len(self.is_updated) - n), None)
        return TextWindow(self.is_updated[rows], self.text[rows], self.has_text[rows], self.missing, self.is_whole)

    def write_to(self, inputs: FusionInputs) -> None:
        """Replace the former vectors of these utterances, which are the last ones of `inputs`."""
        rows = len(inputs.text) - len(self.is_updated) + np.flatnonzero(self.is_updated)
        inputs.text[rows] = self.text[self.is_updated]
        inputs.text_mask[rows] = self.has_text[self.is_updated]


def window_start(n_tokens: Int64Array, max_tokens: int) -> int:
    """Position of the first utterance of the window, which ends with the newest utterance, whatever its length.

    n_tokens: int64 (U,), of each utterance. max_tokens: tokens that may be encoded together.
    """
    first = len(n_tokens) - 1
    total = int(n_tokens[first])
    while first > 0 and total + n_tokens[first - 1] <= max_tokens:
        first -= 1
        total += int(n_tokens[first])
    return first


def encode_window(
    utterances: Sequence[Utterance], n_tokens: Int64Array, first: int, encoders: ModalityEncoders
) -> TextWindow:
    """Encode the words of the utterances from position `first` on together.

    n_tokens: int64 (U,), of each utterance.
    """
    inputs = FusionInputs.absent(utterances[first:], encoders.sizes)
    missing = encoders.encode_text(utterances[first:], inputs)
    # As in `TextConfig.context_tokens`: utterances with less before them than this are context alone.
    before = np.concatenate([[0], n_tokens[first:].cumsum()[:-1]])
    is_updated = (before >= int(n_tokens[first:].sum()) // 2) | (first == 0)
    limit = current_limit()
    late = [] if limit is None else [row for row, reason in missing.items() if limit.reason in reason]
    is_updated[late] = False  # what is known of them is better than a part of it
    newest = len(utterances) - 1 - first
    is_updated[newest] = True
    reasons = {"text": missing[newest]} if newest in missing else {}
    return TextWindow(is_updated, inputs.text, inputs.text_mask, reasons, is_whole=not late)
