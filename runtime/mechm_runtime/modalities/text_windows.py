"""Conversation text to token windows, and token states back to one vector per utterance.

The whole conversation is one token sequence, `speaker: text [SEP]` per utterance, so that an utterance is encoded with
the words around it. A sequence longer than the encoder's input is encoded in overlapping windows: the state of a token
comes from the window in whose core it lies, with context on both sides; nothing is cut off. Training and runtime share
this module. It does not run the encoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer

from mechm_runtime.bundle.config import TextConfig
from mechm_runtime.errors import BundleError
from mechm_runtime.system.arrays import BoolArray, Float32Array, Int64Array
from mechm_runtime.types import Utterance

NO_UTTERANCE = -1
"""Index of tokens that belong to no utterance."""


@dataclass(frozen=True, slots=True)
class TextWindows:
    """A conversation's tokens, batched as windows.

    input_ids, attention_mask: int64 (n_windows, n_tokens), right-padded.
    utterance_index: int64 (n_windows, n_tokens); position of the utterance that a token belongs to, NO_UTTERANCE for
        `[CLS]`, padding and context tokens.
    n_utterances: utterances in the conversation.
    """

    input_ids: Int64Array
    attention_mask: Int64Array
    utterance_index: Int64Array
    n_utterances: int

    @property
    def n_tokens(self) -> Int64Array:
        """int64 (n_utterances,), tokens that belong to each utterance."""
        owners = self.utterance_index[self.utterance_index != NO_UTTERANCE]
        return np.bincount(owners, minlength=self.n_utterances).astype(np.int64)

    def first(self, n_windows: int) -> TextWindows:
        """The first windows alone: views of the same arrays."""
        rows = slice(n_windows)
        return TextWindows(
            self.input_ids[rows], self.attention_mask[rows], self.utterance_index[rows], self.n_utterances
        )

    @property
    def has_text(self) -> BoolArray:
        """bool (n_utterances,), True where at least one token belongs to the utterance."""
        present = np.zeros(self.n_utterances, bool)
        present[self.utterance_index[self.utterance_index != NO_UTTERANCE]] = True
        return present


class ConversationTokenizer:
    """Turns utterances into `TextWindows` with a WordPiece tokenizer file (`tokenizer.json`)."""

    def __init__(self, tokenizer_file: Path, config: TextConfig) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"{tokenizer_file.name} is not a tokenizer file") from error
        # A file may configure truncation or padding; here every token counts, and the windows are padded below.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # The characters "[SEP]" in somebody's text must not become the special token.
        self._tokenizer.encode_special_tokens = True
        self.config = config
        self._cls, self._sep, self._pad = self._special(tokenizer_file)
        self._unknown = self._tokenizer.token_to_id("[UNK]")

    def __call__(self, utterances: Sequence[Utterance]) -> TextWindows:
        """Tokenize a conversation; utterances without text, or without a word that is known, have no tokens."""
        spoken = [(i, u) for i, u in enumerate(utterances) if u.text and u.text.strip()]
        encoded = self._tokenizer.encode_batch(
            [f"{u.speaker}: {u.text}" if u.speaker else str(u.text) for _, u in spoken], add_special_tokens=False
        )
        tokens: list[int] = []
        owners: list[int] = []
        for (index, utterance), encoding in zip(spoken, encoded, strict=True):
            if self._knows_no_word(utterance, encoding):
                continue
            tokens += [*encoding.ids, self._sep]
            owners += [index] * (len(encoding.ids) + 1)
        return self._windows(np.array(tokens, np.int64), np.array(owners, np.int64), len(utterances))

    def _knows_no_word(self, utterance: Utterance, encoding: Encoding) -> bool:
        """Whether every token of an utterance's words, without its speaker, is the unknown token: it says nothing."""
        if self._unknown not in encoding.ids:
            return False
        n_speaker = len(f"{utterance.speaker}: ") if utterance.speaker else 0
        words = (token for token, (start, _) in zip(encoding.ids, encoding.offsets, strict=True) if start >= n_speaker)
        return all(token == self._unknown for token in words)

    def _special(self, tokenizer_file: Path) -> tuple[int, int, int]:
        """Ids of the tokens that begin a window, end an utterance and pad, by their names in MPNet or BERT.

        MPNet's names come first: its vocabulary has BERT's names too, as untrained tokens.
        """
        for names in (("<s>", "</s>", "<pad>"), ("[CLS]", "[SEP]", "[PAD]")):
            begins, ends, pads = (self._tokenizer.token_to_id(name) for name in names)
            if begins is not None and ends is not None and pads is not None:
                return begins, ends, pads
        raise BundleError(f"{tokenizer_file.name} has no [CLS], [SEP] and [PAD] token")

    def _windows(self, tokens: Int64Array, owners: Int64Array, n_utterances: int) -> TextWindows:
        room = self.config.max_tokens - 1
        n_tokens = len(tokens)
        if n_tokens <= room:
            spans = [(0, n_tokens, 0, n_tokens)] if n_tokens else []
        else:
            core = room - 2 * self.config.context_tokens
            spans = []
            for start in range(0, n_tokens, core):
                stop = min(start + core, n_tokens)
                low, high = max(0, start - self.config.context_tokens), min(n_tokens, stop + self.config.context_tokens)
                spans.append((low, high, start, stop))
        width = 1 + max((high - low for low, high, _, _ in spans), default=0)
        shape = (len(spans), width)
        input_ids = np.full(shape, self._pad, np.int64)
        attention_mask = np.zeros(shape, np.int64)
        utterance_index = np.full(shape, NO_UTTERANCE, np.int64)
        for row, (low, high, start, stop) in enumerate(spans):
            input_ids[row, 0] = self._cls
            input_ids[row, 1 : 1 + high - low] = tokens[low:high]
            attention_mask[row, : 1 + high - low] = 1
            utterance_index[row, 1 + start - low : 1 + stop - low] = owners[start:stop]
        return TextWindows(input_ids, attention_mask, utterance_index, n_utterances)


def pool_utterances(hidden_states: Float32Array, windows: TextWindows) -> Float32Array:
    """Mean of each utterance's token states.

    hidden_states: float32 (n_windows, n_tokens, hidden_size), of the same windows.
    Returns: float32 (n_utterances, hidden_size); zeros where `windows.has_text` is False.
    """
    return pool_batches([hidden_states], windows)


def pool_batches(batches: Iterable[Float32Array], windows: TextWindows) -> Float32Array:
    """`pool_utterances` of states that come in batches, of which only one is held in memory.

    batches: float32 (rows, n_tokens, hidden_size), together the first windows in order, or all; at least one batch.
        Tokens of windows that do not come are passed over.
    """
    sums = np.zeros((windows.n_utterances, 0), np.float32)
    first = 0
    for states in batches:
        index = windows.utterance_index[first : first + len(states)]
        keep = index != NO_UTTERANCE
        if not sums.size:
            sums = np.zeros((windows.n_utterances, states.shape[-1]), np.float32)
        np.add.at(sums, index[keep], states[keep])
        first += len(states)
    counts = windows.first(first).n_tokens.astype(np.float32)
    return np.asarray(sums / np.maximum(counts, 1.0)[:, None], np.float32)
