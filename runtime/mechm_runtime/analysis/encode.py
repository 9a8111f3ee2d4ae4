"""A conversation's words and recordings read by the encoders: side by side where there are lanes, else in turns.

Decoding goes on in its own process, its results are taken in by the calling thread, the encoders of text, voice, faces
and frames run in lanes. What each of them is given does not depend on the others, so that the result is the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait

from mechm_runtime.analysis.decoding import is_recorded, segments
from mechm_runtime.analysis.encoders import Senses
from mechm_runtime.analysis.state import Work
from mechm_runtime.media.reader_pool import ReaderPool
from mechm_runtime.system.progress import Progress
from mechm_runtime.system.thread_pool import Lanes
from mechm_runtime.types import Conversation

SEGMENTS_AHEAD = 2
"""Decoded utterances a lane that may wait to be read: enough that no lane waits, and a bound on memory."""


def read_conversation(
    conversation: Conversation, senses: Senses, readers: ReaderPool, lanes: Lanes, work: Work, report: Progress
) -> None:
    """Fill `work` with what is said, heard and seen.

    Raises: MediaError: the conversation's own recording cannot be read. InputError: a time is past its end.
    """
    utterances = conversation.utterances
    n = len(utterances)
    if not (is_recorded(conversation) and senses.reads_media):
        senses.read_text(utterances, work, lambda done, total: report("text", done, total))
        return
    # Its process gets ready while the text is read.
    with readers.reader() as reader:
        if lanes.n == 1:
            senses.read_text(utterances, work, lambda done, total: report("text", done, total))
            for done, (index, segment) in enumerate(segments(conversation, reader, senses, work), 1):
                senses.read_segment(index, segment, work)
                report("media", done, n)
            return
        with _Ahead(lanes, report, n) as ahead:
            ahead.add("text", [lambda: senses.read_text(utterances, work)])
            for index, segment in segments(conversation, reader, senses, work):
                ahead.add("media", senses.steps(index, segment, work))
            ahead.finish()


class _Ahead:
    """What was handed to the lanes and is not known to be done, in order; bounded.

    Left with an error, what has not begun is dropped, and what runs is waited for: it writes into arrays that are the
    caller's.
    """

    def __init__(self, lanes: Lanes, report: Progress, n_utterances: int) -> None:
        self._lanes = lanes
        self._report = report
        self._n = n_utterances
        self._n_read = 0
        self._waiting: deque[tuple[str, list[Future[None]]]] = deque()

    def __enter__(self) -> _Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        left = [future for _, futures in self._waiting for future in futures]
        for future in left:
            future.cancel()
        wait(left)

    def add(self, stage: str, steps: list[Callable[[], None]]) -> None:
        """Hand over calls; waits while there are too many before them.

        Raises: what an earlier one did.
        """
        while len(self._waiting) > SEGMENTS_AHEAD * self._lanes.n:
            self._take()
        futures: list[Future[None]] = []
        self._waiting.append((stage, futures))
        for step in steps:
            futures.append(self._lanes.submit(step))  # noqa: PERF401 (one that is in the lanes must not be lost)

    def finish(self) -> None:
        """Wait for all of them.

        Raises: what one of them did.
        """
        while self._waiting:
            self._take()

    def _take(self) -> None:
        """Wait for the oldest, and report it."""
        stage, futures = self._waiting[0]
        for future in futures:
            future.result()
        self._waiting.popleft()
        if stage == "media":
            self._n_read += 1
        self._report(stage, self._n_read if stage == "media" else self._n, self._n)
