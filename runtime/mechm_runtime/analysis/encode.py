"""Running the encoders over a conversation: side by side where there are lanes, else one after the other.

Decoding goes on in its own process, its results are taken in by the calling thread, the encoders of text, voice, faces
and frames run in lanes. The inputs of an encoder do not depend on the other encoders, so that the result is the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from functools import partial

from mechm_runtime.analysis.decoding import Decoded, decode_conversation, is_recorded
from mechm_runtime.analysis.encoders import ModalityEncoders
from mechm_runtime.analysis.state import AnalysisState
from mechm_runtime.bundle.modality import ModalitySpec
from mechm_runtime.media import SAMPLE_RATE, MediaReader, Segment
from mechm_runtime.media.reader_pool import ReaderPool
from mechm_runtime.system.arrays import Array
from mechm_runtime.system.progress import Progress, no_progress
from mechm_runtime.system.thread_pool import ThreadPool
from mechm_runtime.types import Conversation, Utterance

SEGMENTS_AHEAD = 2
"""Decoded utterances per lane that may wait to be encoded: enough that no lane waits, and a bound on memory."""


def encode_conversation(
    conversation: Conversation,
    encoders: ModalityEncoders,
    readers: ReaderPool,
    lanes: ThreadPool,
    state: AnalysisState,
    report: Progress,
) -> None:
    """Fill `state` with the encoded words, voices, faces and frames of a conversation.

    report: called from the calling thread.

    Raises: MediaError: the conversation's own recording cannot be read. InputError: an utterance ends after it.
    """
    utterances = conversation.utterances
    n = len(utterances)
    if not (is_recorded(conversation) and encoders.uses_media):
        encode_text(utterances, encoders, state, report)
        return
    # The reader's process gets ready while the text is encoded.
    with readers.reader() as reader:
        if lanes.n == 1:
            encode_text(utterances, encoders, state, report)
            for done, (index, segment) in enumerate(decoded_segments(conversation, reader, encoders, state), 1):
                for step in encoding_steps(index, segment, encoders, state):
                    step()
                report("media", done, n)
            return
        with _PendingSteps(lanes, report, n) as pending:
            # Progress is reported by the calling thread alone.
            pending.add("text", [partial(encode_text, utterances, encoders, state, no_progress)])
            for index, segment in decoded_segments(conversation, reader, encoders, state):
                pending.add("media", encoding_steps(index, segment, encoders, state))
            pending.finish()


def encode_text(
    utterances: Sequence[Utterance], encoders: ModalityEncoders, state: AnalysisState, report: Progress
) -> None:
    """Fill `state` with the encoded words of a conversation; does nothing where text is not used."""
    if "text" not in encoders.modalities:
        return
    with state.timed("text", state.n_tokens):
        missing = encoders.encode_text(utterances, state.inputs, partial(report, "text"))
    for index, reason in missing.items():
        state.missing[index]["text"] = reason
    report("text", len(utterances), len(utterances))


def decoded_segments(
    conversation: Conversation, reader: MediaReader, encoders: ModalityEncoders, state: AnalysisState
) -> Iterator[tuple[int, Segment]]:
    """Decoded segments by position of their utterance; reasons for missing ones are noted in `state`.

    Time spent on decoding is counted, that of the consumer is not.
    Raises: as `decoding.decode_conversation`.
    """

    def choose_frames(durations_s: Sequence[float]) -> int:
        """Tell the deadline of the work to come; frames are decoded where there is time for a modality of theirs."""
        if state.deadline is not None:
            for duration_s in durations_s:
                state.deadline.expect_work(encoders.modalities, sound_s=duration_s, n_frames=encoders.n_frames)
        specs = [spec for spec in encoders.track_specs if spec.track == "video"]
        return encoders.n_frames if any(not state.skip_reason(spec.name) for spec in specs) else 0

    for index, decoded in _timed(decode_conversation(conversation, reader, choose_frames), state):
        if isinstance(decoded, Segment):
            yield index, decoded
        else:
            state.note_missing_track(index, "audio", decoded)
            state.note_missing_track(index, "video", decoded)


def encoding_steps(
    index: int, segment: Segment, encoders: ModalityEncoders, state: AnalysisState
) -> list[Callable[[], None]]:
    """Calls that encode the tracks of an utterance into `state`; they may be made side by side."""
    signals = {"audio": segment.samples, "video": segment.frames}
    for track, reason in segment.missing.items():
        state.note_missing_track(index, track, reason)
    steps: list[Callable[[], None]] = []
    for spec in encoders.track_specs:
        if spec.track in segment.missing:
            continue
        signal = signals[spec.track]
        if spec.drop_order is not None and (reason := state.skip_reason(spec.name)):
            state.missing[index][spec.name] = reason
        elif signal is not None and (spec.track == "audio" or len(signal)):
            steps.append(partial(_encode_track, spec, index, signal, encoders, state))
    return steps


def _encode_track(
    spec: ModalitySpec, index: int, signal: Array, encoders: ModalityEncoders, state: AnalysisState
) -> None:
    encoder = encoders.of(spec.name)  # loading it is no part of its cost
    with state.timed(spec.name, len(signal) / SAMPLE_RATE if spec.cost_unit == "seconds" else len(signal)):
        reason = encoder.encode(index, signal, state.inputs)
    if reason:
        state.missing[index][spec.name] = reason


def _timed(decoded: Iterator[Decoded], state: AnalysisState) -> Iterator[Decoded]:
    while True:
        with state.timed("decode"):
            item = next(decoded, None)
        if item is None:
            return
        yield item


class _PendingSteps:
    """Calls that were handed to the lanes and are not known to be done, in order; bounded.

    Left with an error, calls that have not begun are dropped, and those that run are waited for: they write into arrays
    of the caller.
    """

    def __init__(self, lanes: ThreadPool, report: Progress, n_utterances: int) -> None:
        self._lanes = lanes
        self._report = report
        self._n = n_utterances
        self._n_encoded = 0
        self._waiting: deque[tuple[str, list[Future[None]]]] = deque()

    def __enter__(self) -> _PendingSteps:
        return self

    def __exit__(self, *_: object) -> None:
        left = [future for _, futures in self._waiting for future in futures]
        for future in left:
            future.cancel()
        wait(left)

    def add(self, stage: str, steps: list[Callable[[], None]]) -> None:
        """Hand over calls; waits while there are too many before them.

        Raises: what an earlier call raised.
        """
        while len(self._waiting) > SEGMENTS_AHEAD * self._lanes.n:
            self._wait_for_oldest()
        futures: list[Future[None]] = []
        self._waiting.append((stage, futures))
        for step in steps:
            futures.append(self._lanes.submit(step))  # noqa: PERF401 (one that is in the lanes must not be lost)

    def finish(self) -> None:
        """Wait for all calls.

        Raises: what one of them raised.
        """
        while self._waiting:
            self._wait_for_oldest()

    def _wait_for_oldest(self) -> None:
        """Wait for the calls handed over first, and report them."""
        stage, futures = self._waiting[0]
        for future in futures:
            future.result()
        self._waiting.popleft()
        if stage == "media":
            self._n_encoded += 1
        self._report(stage, self._n_encoded if stage == "media" else self._n, self._n)
