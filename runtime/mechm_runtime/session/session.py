"""A conversation that goes on: each utterance is analysed when it ends, and changed results of earlier ones reported.

An utterance is encoded once, its voice and frames while it is spoken where they are streamed in (`streamed_utterance`);
the words of the last few utterances are encoded together (`text_window`), the fusion and the decision run over all
utterances that are kept (`history`), the Llama keeps its context (`llm_window`). Memory and time are bounded, however
long the conversation goes on.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from mechm_runtime.analysis.deadline import CostEstimator, Deadline, NoDeadline
from mechm_runtime.analysis.decoding import MAX_UTTERANCE_S
from mechm_runtime.analysis.encode import PendingSteps, decoded_segments, encoding_steps
from mechm_runtime.analysis.encoders import ModalityEncoders
from mechm_runtime.analysis.results import build_results
from mechm_runtime.analysis.state import AnalysisState
from mechm_runtime.bundle.manifest import Bundle
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.errors import InputError
from mechm_runtime.fusion.decision import decide
from mechm_runtime.fusion.run import FusionScores, run_fusion
from mechm_runtime.llm.rescoring import LlmRescorer
from mechm_runtime.llm.scorer import run_steps, run_steps_async
from mechm_runtime.media import Segment
from mechm_runtime.media.reader_pool import ReaderPool
from mechm_runtime.media.segments import SAMPLE_RATE
from mechm_runtime.session.config import SessionConfig
from mechm_runtime.session.history import History
from mechm_runtime.session.llm_window import LlmWindow
from mechm_runtime.session.snapshot import Snapshot, from_bytes, to_bytes
from mechm_runtime.session.streamed_utterance import StreamedUtterance, checked_frames, checked_samples
from mechm_runtime.session.text_window import TextWindow, encode_window, window_start
from mechm_runtime.session.update import Revision, SessionUpdate
from mechm_runtime.system.after_fork import tell_after_fork
from mechm_runtime.system.arrays import Float32Array, Int64Array, UInt8Array
from mechm_runtime.system.progress import no_progress
from mechm_runtime.system.thread_pool import ThreadPool
from mechm_runtime.system.time_limit import OutOfTimeError, limited_by
from mechm_runtime.types import Analysis, Conversation, Pair, Utterance, UtteranceAnalysis

Samples = Float32Array
Frames = UInt8Array


@dataclass(frozen=True, slots=True)
class SessionParts:
    """The parts of a pipeline that its sessions share.

    costs: estimates of the stages' cost in sessions, in the units of `Pipeline.costs`; one unit of the fusion is one
    run. callers: threads for asynchronous calls, which wait for lanes.
    """

    bundle: Bundle
    encoders: ModalityEncoders
    fusion: GraphRunner
    rescorer: LlmRescorer | None
    lanes: ThreadPool
    callers: ThreadPool
    readers: ReaderPool
    costs: CostEstimator


class Session:
    """One conversation that goes on; `Pipeline.open_session` opens it.

    Calls must not overlap. Sessions of one pipeline may be used from several threads at the same time.
    """

    def __init__(
        self, parts: SessionParts, conversation_id: str, config: SessionConfig, history: History | None = None
    ) -> None:
        self._parts = parts
        self._id = conversation_id
        self._config = config
        self._history = History.empty(parts.bundle.fusion, _soft_shape(parts)) if history is None else history
        self._window = None if parts.rescorer is None else LlmWindow(parts.rescorer, config, parts.lanes)
        self._streamed: StreamedUtterance | None = None
        self._lock = threading.Lock()
        tell_after_fork(self)

    @classmethod
    def restored(cls, parts: SessionParts, data: bytes) -> Session:
        """Continue a session from where `snapshot` was taken.

        Raises: InputError: the bytes are damaged, or of another bundle.
        """
        snapshot = from_bytes(data, parts.bundle.id, parts.bundle.fusion, _soft_shape(parts))
        return cls(parts, snapshot.conversation_id, snapshot.config, snapshot.history)

    @property
    def utterances(self) -> tuple[Utterance, ...]:
        """The utterances that are kept; results of earlier ones are final."""
        return self._history.utterances

    @property
    def n_bytes(self) -> int:
        """Bytes of the arrays that this session holds."""
        return self._history.n_bytes + (0 if self._window is None else self._window.n_bytes)

    def append_audio(self, samples: Samples) -> None:
        """Add sound of the utterance that is being spoken; `append` then ends it.

        samples: float32 (n,), 16 kHz mono, in [-1, 1]; any n.
        Raises: InputError: something else, or another call is under way.
        """
        with self._exclusive():
            self._current_stream().add_audio(samples)

    def append_frame(self, frame: Frames, at_s: float | None = None) -> None:
        """Add a frame of the utterance that is being spoken; `append` then ends it.

        frame: uint8 (H, W, 3), RGB. at_s: seconds since the utterance began; None for the end of its voice so far.
        Raises: InputError: something else, or another call is under way.
        """
        with self._exclusive():
            self._current_stream().add_frame(frame, at_s)

    def discard(self) -> None:
        """Drop the voice and frames that were streamed in of an utterance that has not ended."""
        with self._exclusive():
            self._streamed = None

    def append(
        self,
        utterance: Utterance,
        *,
        samples: Samples | None = None,
        frames: Frames | None = None,
        deadline_ms: float | None = None,
    ) -> SessionUpdate:
        """Analyse the next utterance, which has ended.

        utterance: its id is above those before; its `media` is decoded where it has one.
        samples: its voice, float32 (n,), 16 kHz mono, where that was not streamed in. frames: uint8 (n, H, W, 3), RGB,
            in order; of more than the bundle reads, evenly spaced ones are taken.
        deadline_ms: time limit in milliseconds. To meet it the Llama is left out first, then scenes, then faces, as for
            `Pipeline.analyze`; of streamed voice and frames what is encoded by then is used.
        Raises: InputError: nothing to analyse, an id that is not new, voice or frames given in two ways, or another
            call is under way. After an error the session is as it was.
        """
        with self._exclusive():
            history, scores, state = self._encode_and_score(utterance, samples, frames, self._limit(deadline_ms))
            if self._window is not None and state.admits_llm():
                with state.llm_stage():
                    history = run_steps(self._window.steps(history, scores, state.missing), self._window.runner)
            return self._finish(history, scores, state)

    async def append_async(
        self,
        utterance: Utterance,
        *,
        samples: Samples | None = None,
        frames: Frames | None = None,
        deadline_ms: float | None = None,
    ) -> SessionUpdate:
        """`append` for an event loop, which is never blocked. When cancelled, it leaves the session as it was.

        Raises: as `append`.
        """
        with self._exclusive():
            limit = self._limit(deadline_ms)
            try:
                history, scores, state = await self._parts.callers.run_async(
                    self._encode_and_score, utterance, samples, frames, limit
                )
            except asyncio.CancelledError:
                limit.cancel()
                raise
            if self._window is not None and state.admits_llm():
                with state.llm_stage():
                    steps = self._window.steps(history, scores, state.missing)
                    history = await run_steps_async(steps, self._window.runner, self._parts.callers)
            return await self._parts.callers.run_async(self._finish, history, scores, state)

    def analysis(self) -> Analysis:
        """Results of all utterances that are kept, as `Pipeline.analyze` gives them.

        Raises: InputError: nothing was said yet, or another call is under way.
        """
        with self._exclusive():
            history = self._history
            if not len(history):
                raise InputError("nothing was said yet", hint="append an utterance")
            state = self._new_state(history.utterances)
            with state.timed("fusion"):
                scores = self._run_fusion(history)
            found, pairs = self._decide(history, scores, state)
            return Analysis(self._id, found, pairs, state.finish(), self._parts.bundle.id)

    def snapshot(self) -> bytes:
        """The session as bytes, for `Pipeline.restore_session` in this or another process.

        They contain the words of the conversation: protect them accordingly.
        Raises: InputError: an utterance is being spoken, or another call is under way.
        """
        with self._exclusive():
            if self._streamed is not None:
                raise InputError("an utterance is being spoken", hint="append it first, or session.discard()")
            return to_bytes(Snapshot(self._parts.bundle.id, self._id, self._config, self._history))

    def after_fork(self) -> None:
        """Release the lock: no other thread exists in this process."""
        self._lock = threading.Lock()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the session. It does not wait for another call: which utterance came first would be left to chance."""
        lock = self._lock
        if not lock.acquire(blocking=False):
            raise InputError("another call on this session is under way", hint="await it first: their order counts")
        try:
            yield
        finally:
            lock.release()

    def _current_stream(self) -> StreamedUtterance:
        if self._streamed is None:
            self._streamed = StreamedUtterance(self._parts.encoders, self._parts.lanes, self._config)
        return self._streamed

    def _encode_and_score(
        self,
        utterance: Utterance,
        samples: Samples | None,
        frames: Frames | None,
        limit: Deadline | NoDeadline,
    ) -> tuple[History, FusionScores, AnalysisState]:
        """Everything before the Llama: the history with the new utterance, and the fusion's scores of it."""
        parts, history = self._parts, self._history
        segment = self._segment(utterance, samples, frames)
        windows = parts.encoders.tokenize((utterance,))
        n_tokens = 0 if windows is None else int(windows.n_tokens.sum())
        if isinstance(limit, Deadline):
            self._expect_work(limit, n_tokens, segment)
        state = self._new_state((utterance,), n_tokens=n_tokens, limit=limit)
        with limited_by(limit):
            words = self._encode(utterance, segment, state)
        if state.is_empty:
            detail = "; ".join(f"{modality}: {reason}" for modality, reason in state.missing[0].items())
            raise InputError(
                f"utterance {utterance.id} has nothing to analyse{f' ({detail})' if detail else ''}",
                hint="give text, samples, frames or a clip",
            )
        history = history.with_new(utterance, state.inputs, state.missing[0], n_tokens, self._config.turns)
        words.last(len(history)).write_to(history.inputs)
        with state.timed("fusion", 1.0):
            scores = self._run_fusion(history)
            if history.soft is not None and parts.rescorer is not None and history.inputs.has_nonverbal()[-1]:
                soft = parts.rescorer.soft_tokens(history.inputs)
                if soft is not None:
                    history.soft.tokens[-1], history.soft.has_nonverbal[-1] = soft.tokens[-1], True
        return history, scores, state

    def _encode(self, utterance: Utterance, segment: Segment | None, state: AnalysisState) -> TextWindow:
        """Encode a new utterance into `state`, and its words with those before it.

        segment: its voice and frames where they were given to `append`.
        """
        parts = self._parts
        tokens = np.append(self._history.n_tokens, state.n_tokens)
        first = window_start(tokens, self._config.text_tokens)
        with PendingSteps(parts.lanes, no_progress, 1) as pending:
            if state.deadline is None:
                self._hand_over(utterance, segment, state, pending)
                words = self._encode_words(utterance, tokens, first, state)
            else:  # the words first: they tell most
                words = self._encode_words(utterance, tokens, first, state)
                self._hand_over(utterance, segment, state, pending)
            pending.finish()
        if self._streamed is not None:
            self._streamed.write_to(state, _duration_s(utterance))
        state.inputs.text_mask[-1:] = words.has_text[-1:]
        state.missing[0].update(words.missing)
        return words

    def _encode_words(self, utterance: Utterance, tokens: Int64Array, first: int, state: AnalysisState) -> TextWindow:
        """Encode the words of a new utterance with those before it from position `first` on.

        tokens: int64 (U,), of each utterance.
        """
        with state.timed("text", int(tokens[first:].sum())) as watch:
            words = encode_window((*self._history.utterances, utterance), tokens, first, self._parts.encoders)
            if not words.is_whole:
                watch.done = 0.0
        return words

    def _hand_over(
        self, utterance: Utterance, segment: Segment | None, state: AnalysisState, pending: PendingSteps
    ) -> None:
        """Hand the voice and frames of a new utterance to the lanes; those of a clip as it is decoded."""
        encoders = self._parts.encoders
        if segment is not None:
            pending.add("media", encoding_steps(0, segment, encoders, state))
        if utterance.media is None or not encoders.uses_media:
            return
        clip = Conversation(self._id, (utterance,))
        try:
            with self._parts.readers.reader() as reader:
                for _, decoded in decoded_segments(clip, reader, encoders, state):
                    pending.add("media", encoding_steps(0, decoded, encoders, state))
        except OutOfTimeError:  # all readers were busy
            state.note_unread_recording(0)

    def _new_state(
        self,
        utterances: Sequence[Utterance],
        *,
        n_tokens: int = 0,
        limit: Deadline | NoDeadline | None = None,
    ) -> AnalysisState:
        parts = self._parts
        return AnalysisState(
            utterances,
            parts.bundle.fusion,
            parts.encoders.modalities,
            n_tokens=n_tokens,
            costs=parts.costs,
            limit=limit,
            started=limit.started if isinstance(limit, Deadline) else None,
        )

    def _segment(self, utterance: Utterance, samples: Samples | None, frames: Frames | None) -> Segment | None:
        """The voice and frames that were given to `append`; None where there are none.

        Raises: InputError: as `append`.
        """
        known = self._history.utterances
        if known and utterance.id <= known[-1].id:
            raise InputError(
                f"utterance id {utterance.id} comes after {known[-1].id}", hint="give utterances rising ids"
            )
        given = samples is not None or frames is not None
        if given + (utterance.media is not None) + (self._streamed is not None) > 1:
            raise InputError(
                f"utterance {utterance.id} has its voice or frames from two sources",
                hint="give them to append, name a clip, or stream them in; session.discard() forgets what was streamed",
            )
        if not given:
            return None
        if frames is not None:
            n, most = len(checked_frames(frames)), self._parts.bundle.fusion.n_frames
            frames = frames[[int((k + 0.5) / most * n) for k in range(most)]] if n > most else frames
        if samples is not None:
            samples = checked_samples(samples)[: round(MAX_UTTERANCE_S * SAMPLE_RATE)]
        duration_s = 0.0 if samples is None else len(samples) / SAMPLE_RATE
        return Segment(0.0, duration_s, samples, frames, {})

    def _limit(self, deadline_ms: float | None) -> Deadline | NoDeadline:
        """The limit of an utterance that ends now.

        Raises: InputError: a deadline that is not above 0.
        """
        parts = self._parts
        return NoDeadline() if deadline_ms is None else Deadline(deadline_ms, parts.costs, parts.lanes.n)

    def _expect_work(self, deadline: Deadline, n_tokens: int, segment: Segment | None) -> None:
        """Tell a deadline of the work to be done until then.

        n_tokens: of the utterance. segment: its voice and frames where they were given to `append`.
        """
        samples, frames = (None, None) if segment is None else (segment.samples, segment.frames)
        deadline.expect_work(
            self._parts.encoders.modalities,
            n_tokens=min(self._config.text_tokens, n_tokens + int(self._history.n_tokens.sum())),
            sound_s=None if samples is None else len(samples) / SAMPLE_RATE,
            n_frames=None if frames is None else len(frames),
            n_llm_tokens=None if self._window is None else n_tokens,
            n_utterances=1.0,
        )

    def _run_fusion(self, history: History) -> FusionScores:
        return run_fusion(self._parts.fusion, history.inputs, self._parts.bundle.fusion)

    def _decide(
        self, history: History, scores: FusionScores, state: AnalysisState
    ) -> tuple[tuple[UtteranceAnalysis, ...], tuple[Pair, ...]]:
        """Labels and pairs of all utterances that are kept."""
        bundle, rescorer = self._parts.bundle, self._parts.rescorer
        constants = bundle.decision
        with state.timed("decide", 1.0):
            if rescorer is not None and bundle.llama is not None:
                scores, constants = rescorer.combine(scores, history.answers), bundle.llama.decision
            decision = decide(
                scores.emotion_logits, scores.pair_logits, constants, scores.first_cause, history.inputs.text_mask
            ).without(~(history.inputs.text_mask | history.inputs.has_nonverbal()))
            missing = [dict(reasons) for reasons in history.missing]
            return build_results(history.utterances, history.inputs, missing, decision, self._parts.encoders.modalities)

    def _finish(self, history: History, scores: FusionScores, state: AnalysisState) -> SessionUpdate:
        """Report the update, and keep the history as it is now."""
        found, pairs = self._decide(history, scores, state)
        pairs_of: dict[int, list[Pair]] = {u.id: [] for u in found}
        for pair in pairs:
            pairs_of[pair.emotion_utterance].append(pair)
        reported = tuple((u.emotion, tuple(pair.cause_utterance for pair in pairs_of[u.id])) for u in found)
        revisions = tuple(
            Revision(u, tuple(pairs_of[u.id]), *before)
            for u, before, now in zip(found[:-1], history.last_reported[:-1], reported[:-1], strict=True)
            if before != now
        )
        self._history, self._streamed = replace(history, last_reported=reported), None
        if self._window is not None:
            self._window.read_ahead(self._history)
        newest = found[-1]
        timings_ms = state.finish()
        return SessionUpdate(
            newest, tuple(pairs_of[newest.id]), revisions, timings_ms, self._parts.bundle.id, state.late_ms
        )


def _duration_s(utterance: Utterance) -> float | None:
    return None if utterance.start_s is None or utterance.end_s is None else utterance.end_s - utterance.start_s


def _soft_shape(parts: SessionParts) -> tuple[int, int] | None:
    """Soft tokens per utterance and their width, where the Llama reads any."""
    return None if parts.rescorer is None else parts.rescorer.soft_shape
