"""Text encoder: the words of a conversation to one vector per utterance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mechm_runtime.bundle.manifest import TOKENIZER_FILE, Bundle
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.fusion.inputs import FusionInputs
from mechm_runtime.modalities.text_windows import ConversationTokenizer, TextWindows, pool_batches
from mechm_runtime.system.arrays import Float32Array
from mechm_runtime.system.progress import StageProgress
from mechm_runtime.types import Utterance

TEXT_WINDOWS_PER_RUN = 8
"""Windows of a long conversation that are run at once: bounds memory."""


class TextEncoder:
    """Fills `text` and `text_mask`."""

    def __init__(self, tokenizer: ConversationTokenizer, engine: GraphRunner) -> None:
        self._tokenizer = tokenizer
        self._engine = engine

    @classmethod
    def from_bundle(cls, bundle: Bundle, load: Callable[[str], GraphRunner]) -> TextEncoder:
        """Build the encoder; `load` gives the engine of a part."""
        return cls(ConversationTokenizer(bundle.path(TOKENIZER_FILE), bundle.text), load("text"))

    def encode(
        self,
        utterances: Sequence[Utterance],
        inputs: FusionInputs,
        progress: StageProgress | None = None,
    ) -> None:
        """Encode the words of a conversation.

        inputs: of the same utterances. progress: called with the utterances done and their number, after every
        `TEXT_WINDOWS_PER_RUN` windows.
        """
        windows = self._tokenizer(utterances)
        inputs.text_mask[:] = windows.has_text
        if len(windows.input_ids):
            inputs.text[:] = pool_batches(self._states(windows, progress), windows)

    def n_tokens(self, utterance: Utterance) -> int:
        """Number of tokens of an utterance; 0 where it has no words."""
        return int((self._tokenizer([utterance]).utterance_index == 0).sum())

    def _states(self, windows: TextWindows, progress: StageProgress | None) -> Iterator[Float32Array]:
        """Token states of a few windows at a time: those of a long conversation together take a gigabyte."""
        n_windows = len(windows.input_ids)
        for start in range(0, n_windows, TEXT_WINDOWS_PER_RUN):
            rows = slice(start, start + TEXT_WINDOWS_PER_RUN)
            feeds = {"input_ids": windows.input_ids[rows], "attention_mask": windows.attention_mask[rows]}
            yield self._engine.run(feeds)["last_hidden_state"]
            if progress is not None:
                progress(windows.n_utterances * min(rows.stop, n_windows) // n_windows, windows.n_utterances)
