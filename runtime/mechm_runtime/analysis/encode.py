"""Running the encoders over a conversation: side by side where there are lanes, else one after the other.

Decoding goes on in its own process, its results are taken in by the calling thread, the encoders of text, voice, faces
and frames run in lanes. The inputs of an encoder do not depend on the other encoders, so that the result is the same.

With a deadline the words come first, and what has not begun when time is over is left out: the caller waits for at most
one run of an encoder more.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from mechm_runtime.analysis.decoding import CUT_REASON, Decoded, decode_conversation, is_cut, is_recorded
from mechm_runtime.analysis.encoders import ModalityEncoders
from mechm_runtime.analysis.state import AnalysisState
from mechm_runtime.bundle.modality import ModalitySpec
from mechm_runtime.media import SAMPLE_RATE, MediaReader, Segment
from mechm_runtime.media.reader_pool import ReaderPool
from mechm_runtime.system.arrays import Array
from mechm_runtime.system.progress import Progress, no_progress
from mechm_runtime.system.thread_pool import ThreadPool
from mechm_runtime.system.time_limit import OutOfTimeError, check_time, limited_by, wait_s
from mechm_runtime.types import Conversation, Utterance

SEGMENTS_AHEAD = 2
"""Decoded utterances per lane that may wait to be encoded: enough that no lane waits, and a bound on memory."""


class Step(Protocol):
    """A call that fills in a part of an analysis."""

    def __call__(self) -> None:
        """Make it."""

    def leave_out(self) -> None:
        """Note that it was not made because of the request's time limit."""


@dataclass(frozen=True, slots=True)
class TrackStep:
    """Encodes a track of an utterance into the state of its analysis.

    index: position of the utterance. signal: samples or frames, as the modality's track has them. is_cut: whether the
    utterance goes on behind them.
    """

    spec: ModalitySpec
    index: int
    signal: Array
    is_cut: bool
    encoders: ModalityEncoders
    state: AnalysisState

    def __call__(self) -> None:
        """Encode it, as far as the request's time limit allows."""
        spec, state = self.spec, self.state
        with limited_by(state.limit):
            try:
                check_time()
                encoder = self.encoders.of(spec.name)  # loading it is no part of its cost
                n = len(self.signal)
                with state.timed(spec.name, n / SAMPLE_RATE if spec.cost_unit == "seconds" else n) as watch:
                    reason = encoder.encode(self.index, self.signal, state.inputs)
                    if reason:
                        watch.done = 0.0
            except OutOfTimeError:
                self.leave_out()
                return
        if self.is_cut and spec.track == "audio":
            reason = reason or CUT_REASON
        if reason:
            state.missing[self.index][spec.name] = reason

    def leave_out(self) -> None:
        """Note that it was left out."""
        self.state.missing[self.index][self.spec.name] = self.state.limit.reason


@dataclass(frozen=True, slots=True)
class TextStep:
    """Encodes the words of a conversation into the state of its analysis."""

    utterances: Sequence[Utterance]
    encoders: ModalityEncoders
    state: AnalysisState

    def __call__(self) -> None:
        """Encode them."""
        encode_text(self.utterances, self.encoders, self.state, no_progress)

    def leave_out(self) -> None:
        """Note that all words were left out."""
        for reasons in self.state.missing:
            reasons["text"] = self.state.limit.reason


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
    with limited_by(state.limit):
        if not (is_recorded(conversation) and encoders.uses_media):
            encode_text(conversation.utterances, encoders, state, report)
        elif state.deadline is None:
            # The reader's process gets ready while the text is encoded.
            with readers.reader() as reader:
                _encode_recorded(conversation, encoders, reader, lanes, state, report)
        else:
            encode_text(conversation.utterances, encoders, state, report)
            _encode_in_time(conversation, encoders, readers, lanes, state, report)


def _encode_recorded(
    conversation: Conversation,
    encoders: ModalityEncoders,
    reader: MediaReader,
    lanes: ThreadPool,
    state: AnalysisState,
    report: Progress,
) -> None:
    """Encode words and recordings side by side, or in turns where there is one lane."""
    utterances = conversation.utterances
    n = len(utterances)
    if lanes.n == 1:
        encode_text(utterances, encoders, state, report)
        for done, (index, segment) in enumerate(decoded_segments(conversation, reader, encoders, state), 1):
            for step in encoding_steps(index, segment, encoders, state):
                step()
            report("media", done, n)
        return
    with PendingSteps(lanes, report, n) as pending:
        # Progress is reported by the calling thread alone.
        pending.add("text", [TextStep(utterances, encoders, state)])
        for index, segment in decoded_segments(conversation, reader, encoders, state):
            pending.add("media", encoding_steps(index, segment, encoders, state))
        pending.finish()


def _encode_in_time(
    conversation: Conversation,
    encoders: ModalityEncoders,
    readers: ReaderPool,
    lanes: ThreadPool,
    state: AnalysisState,
    report: Progress,
) -> None:
    """Encode recordings until the deadline."""
    n = len(conversation.utterances)
    try:
        if not state.fits("open"):
            raise OutOfTimeError
        with readers.reader() as reader, PendingSteps(lanes, report, n) as pending:
            for index, segment in decoded_segments(conversation, reader, encoders, state):
                pending.add("media", encoding_steps(index, segment, encoders, state))
            pending.finish()
    except OutOfTimeError:  # all readers were busy, or none opens a recording so soon
        for index in range(n):
            state.note_unread_recording(index)


def encode_text(
    utterances: Sequence[Utterance], encoders: ModalityEncoders, state: AnalysisState, report: Progress
) -> None:
    """Fill `state` with the encoded words of a conversation; does nothing where text is not used."""
    if "text" not in encoders.modalities:
        return
    with limited_by(state.limit), state.timed("text", state.n_tokens) as watch:
        missing = encoders.encode_text(utterances, state.inputs, partial(report, "text"), state.windows)
        if any(state.limit.reason in reason for reason in missing.values()):
            watch.done = 0.0
    for index, reason in missing.items():
        state.missing[index]["text"] = reason
    report("text", len(utterances), len(utterances))


def decoded_segments(
    conversation: Conversation, reader: MediaReader, encoders: ModalityEncoders, state: AnalysisState
) -> Iterator[tuple[int, Segment]]:
    """Decoded segments by position of their utterance; reasons for missing ones are noted in `state`.

    Time spent on decoding is counted, that of the consumer is not. The deadline ends it: the rest is left out.
    Raises: as `decoding.decode_conversation`.
    """

    def choose_frames(durations_s: Sequence[float]) -> int:
        """Tell the deadline of the work to come; frames are decoded where there is time for a modality of theirs."""
        if state.deadline is not None:
            for duration_s in durations_s:
                state.deadline.expect_work(encoders.modalities, sound_s=duration_s, n_frames=encoders.n_frames)
        specs = [spec for spec in encoders.track_specs if spec.track == "video"]
        return encoders.n_frames if any(not state.skip_reason(spec.name) for spec in specs) else 0

    left = set(range(len(conversation.utterances)))
    decoding = decode_conversation(conversation, reader, choose_frames)
    began, n = time.perf_counter(), len(left)
    try:
        for index, decoded in _timed(decoding, state):
            if len(left) == n:
                state.learn("open", began)
            left.discard(index)
            if isinstance(decoded, Segment):
                yield index, decoded
            else:
                state.note_missing_track(index, "audio", decoded)
                state.note_missing_track(index, "video", decoded)
    except OutOfTimeError:
        if len(left) == n:
            state.learn("open", began)
        decoding.close()
        for index in left:
            state.note_unread_recording(index)


def encoding_steps(index: int, segment: Segment, encoders: ModalityEncoders, state: AnalysisState) -> list[TrackStep]:
    """Calls that encode the tracks of an utterance into `state`; they may be made side by side."""
    signals = {"audio": segment.samples, "video": segment.frames}
    for track, reason in segment.missing.items():
        state.note_missing_track(index, track, reason)
    steps: list[TrackStep] = []
    for spec in encoders.track_specs:
        if spec.track in segment.missing:
            continue
        signal = signals[spec.track]
        if spec.drop_order is not None and (reason := state.skip_reason(spec.name)):
            state.missing[index][spec.name] = reason
        elif signal is not None and (spec.track == "audio" or len(signal)):
            step = TrackStep(spec, index, signal, is_cut(segment), encoders, state)
            if encoders.is_loaded_in_time(spec.name):
                steps.append(step)
            else:
                step.leave_out()
    return steps


def _timed(decoded: Iterator[Decoded], state: AnalysisState) -> Iterator[Decoded]:
    while True:
        with state.timed("decode"):
            check_time()
            item = next(decoded, None)
        if item is None:
            return
        yield item


class PendingSteps:
    """Calls that were handed to the lanes and are not known to be done, in order; bounded.

    When the time limit of the request passes, calls that have not begun are left out. Left with an error, they are
    dropped. Those that run are waited for: they write into arrays of the caller.
    """

    def __init__(self, lanes: ThreadPool, report: Progress, n_utterances: int) -> None:
        self._lanes = lanes
        self._report = report
        self._n = n_utterances
        self._n_encoded = 0
        self._waiting: deque[tuple[str, list[tuple[Step, Future[None]]]]] = deque()

    def __enter__(self) -> PendingSteps:
        return self

    def __exit__(self, *_: object) -> None:
        left = [future for _, handed in self._waiting for _, future in handed]
        for future in left:
            future.cancel()
        wait(left)

    def add(self, stage: str, steps: Sequence[Step]) -> None:
        """Hand over calls; waits while there are too many before them.

        Raises: what an earlier call raised.
        """
        while len(self._waiting) > SEGMENTS_AHEAD * self._lanes.n:
            self._wait_for_oldest()
        handed: list[tuple[Step, Future[None]]] = []
        self._waiting.append((stage, handed))
        for step in steps:
            handed.append((step, self._lanes.submit(step)))  # noqa: PERF401 (one in the lanes must not be lost)

    def finish(self) -> None:
        """Wait for all calls.

        Raises: what one of them raised.
        """
        while self._waiting:
            self._wait_for_oldest()

    def _wait_for_oldest(self) -> None:
        """Wait for the calls handed over first, and report them."""
        stage, handed = self._waiting[0]
        for step, future in handed:
            wait([future], wait_s())
            if future.cancel():
                step.leave_out()
            else:
                future.result()
        self._waiting.popleft()
        if stage == "media":
            self._n_encoded += 1
        self._report(stage, self._n_encoded if stage == "media" else self._n, self._n)
