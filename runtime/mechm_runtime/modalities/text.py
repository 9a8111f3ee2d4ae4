"""Text encoder: the words of a conversation to one vector per utterance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mechm_runtime.bundle.manifest import TOKENIZER_FILE, Bundle
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.fusion.inputs import FusionInputs
from mechm_runtime.modalities.text_windows import ConversationTokenizer, TextWindows, pool_batches
from mechm_runtime.system.arrays import Float32Array
from mechm_runtime.system.progress import StageProgress
from mechm_runtime.system.time_limit import OutOfTimeError, current_limit, seconds_left
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
        windows: TextWindows | None = None,
    ) -> dict[int, str]:
        """Encode the words of a conversation.

        inputs: of the same utterances. windows: their tokens, where they are known. progress: called with the
        utterances done and their number, after every run.
        Returns: positions of the utterances of which words were left out for the request's time limit -> the reason.
            The first windows are encoded even when the limit has passed, unless other requests are served first.
        """
        if windows is None:
            windows = self._tokenizer(utterances)
        done: list[int] = []
        if len(windows.input_ids):
            pooled = pool_batches(self._states(windows, done, progress), windows)
            if done:
                inputs.text[:] = pooled
        read = windows.first(sum(done))
        inputs.text_mask[:] = read.has_text
        limit = current_limit()
        if limit is None or len(read.input_ids) == len(windows.input_ids):
            return {}
        n_left = windows.n_tokens - read.n_tokens
        return {
            int(index): f"{'the end of its words: ' if inputs.text_mask[index] else ''}{limit.reason}"
            for index in n_left.nonzero()[0]
        }

    def tokenize(self, utterances: Sequence[Utterance]) -> TextWindows:
        """The tokens of a conversation, for `encode`."""
        return self._tokenizer(utterances)

    def _states(self, windows: TextWindows, done: list[int], progress: StageProgress | None) -> Iterator[Float32Array]:
        """Token states of a few windows at a time: those of a long conversation together take a gigabyte.

        done: receives the number of windows of each run.
        """
        n_windows, start = len(windows.input_ids), 0
        while start < n_windows and (not start or seconds_left() > 0):
            rows = slice(start, start + self._n_next(windows, start))
            feeds = {"input_ids": windows.input_ids[rows], "attention_mask": windows.attention_mask[rows]}
            try:
                states = self._engine.run(feeds)["last_hidden_state"]
            except OutOfTimeError:
                return
            done.append(len(states))
            start += len(states)
            yield states
            if progress is not None:
                progress(windows.n_utterances * start // n_windows, windows.n_utterances)

    @staticmethod
    def _n_next(windows: TextWindows, start: int) -> int:
        """Windows to run next: one at a time where the request's time will not do for the rest of them."""
        limit = current_limit()
        if limit is None or limit.fits("text", float(windows.attention_mask[start:].sum())):
            return TEXT_WINDOWS_PER_RUN
        return 1
