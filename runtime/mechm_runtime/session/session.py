"""A conversation that goes on: each utterance is analysed when it ends, and what it changes of earlier ones is told.

The encoders read an utterance once, its voice and frames while it is spoken where they are streamed in; the words of
the last few utterances are read together (`words`), the fusion and the decision look at all that is in view (`view`),
the Llama remembers what it has read (`llama_window`). Memory and time are bounded, however long it goes on.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mechm_runtime.analysis.deadline import CostEstimator, Deadline
from mechm_runtime.analysis.decoding import segments
from mechm_runtime.analysis.encoders import Senses
from mechm_runtime.analysis.results import answers
from mechm_runtime.analysis.state import Work
from mechm_runtime.bundle.manifest import Bundle
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.errors import InputError
from mechm_runtime.fusion.decision import decide
from mechm_runtime.fusion.run import FusionScores, run_fusion
from mechm_runtime.llm.rescoring import Adviser
from mechm_runtime.llm.scorer import answered, answered_async
from mechm_runtime.media import Segment
from mechm_runtime.media.reader_pool import ReaderPool
from mechm_runtime.media.segments import SAMPLE_RATE
from mechm_runtime.session.config import SessionConfig
from mechm_runtime.session.history import View
from mechm_runtime.session.llm_window import LlamaWindow
from mechm_runtime.session.snapshot import Snapshot, from_bytes, to_bytes
from mechm_runtime.session.streamed_utterance import Listening, checked_frames, checked_samples
from mechm_runtime.session.text_window import read_words
from mechm_runtime.session.update import Revision, SessionUpdate
from mechm_runtime.system.after_fork import tell_after_fork
from mechm_runtime.system.thread_pool import Lanes
from mechm_runtime.types import Analysis, Conversation, Pair, Utterance, UtteranceAnalysis

Samples = npt.NDArray[np.float32]
Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class SessionParts:
    """What a pipeline lends to its sessions.

    costs: what stages have cost sessions lately, in the units of `Pipeline.costs`; the fusion counts once an utterance.
    """

    bundle: Bundle
    senses: Senses
    fusion: GraphRunner
    adviser: Adviser | None
    lanes: Lanes
    readers: ReaderPool
    costs: CostEstimator


class Session:
    """One conversation that goes on; `Pipeline.open_session` opens it.

    Calls must follow each other. Sessions of one pipeline may be used from several threads at the same time.
    """

    def __init__(
        self, parts: SessionParts, conversation_id: str, config: SessionConfig, view: View | None = None
    ) -> None:
        self._parts = parts
        self._id = conversation_id
        self._config = config
        self._view = View.empty(parts.bundle.fusion, _soft_shape(parts)) if view is None else view
        self._window = None if parts.adviser is None else LlamaWindow(parts.adviser, config, parts.lanes)
        self._listening: Listening | None = None
        self._lock = threading.Lock()
        tell_after_fork(self)

    @classmethod
    def restored(cls, parts: SessionParts, data: bytes) -> Session:
        """A session that goes on where `snapshot` was taken.

        Raises: InputError: the bytes are damaged, or of another bundle.
        """
        snapshot = from_bytes(data, parts.bundle.id, parts.bundle.fusion, _soft_shape(parts))
        return cls(parts, snapshot.conversation_id, snapshot.config, snapshot.view)

    @property
    def utterances(self) -> tuple[Utterance, ...]:
        """The utterances in view; what was before them is final."""
        return self._view.utterances

    @property
    def n_bytes(self) -> int:
        """Memory that this session takes, as far as it holds arrays."""
        return self._view.n_bytes + (0 if self._window is None else self._window.n_bytes)

    def append_audio(self, samples: Samples) -> None:
        """Hear more of the utterance that is being spoken; `append` then ends it.

        samples: float32 (n,), 16 kHz mono, in [-1, 1]; any n.
        Raises: InputError: something else, or another call is under way.
        """
        with self._alone():
            self._heard().audio(samples)

    def append_frame(self, frame: Frames, at_s: float | None = None) -> None:
        """See more of the utterance that is being spoken; `append` then ends it.

        frame: uint8 (H, W, 3), RGB. at_s: seconds since the utterance began; None for as long as its voice is so far.
        Raises: InputError: something else, or another call is under way.
        """
        with self._alone():
            self._heard().frame(frame, at_s)

    def discard(self) -> None:
        """Forget what was streamed in of an utterance that has not ended."""
        with self._alone():
            self._listening = None

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
        deadline_ms: when the answer should be there. For it the Llama is left out first, then frames, then faces, as
            for `Pipeline.analyze`; what was streamed in is read anyway.
        Raises: InputError: nothing to analyse, an id that is not new, voice or frames given in two ways, or another
            call is under way. After an error the session is as it was.
        """
        with self._alone():
            view, work = self._perceive(utterance, samples, frames, deadline_ms, time.perf_counter())
            if self._window is not None and work.asks_llm():
                with work.advised():
                    view = answered(self._window.steps(view, work.scores, work), self._window.runner)
            return self._conclude(view, work)

    async def append_async(
        self,
        utterance: Utterance,
        *,
        samples: Samples | None = None,
        frames: Frames | None = None,
        deadline_ms: float | None = None,
    ) -> SessionUpdate:
        """The same for an event loop, which is never blocked. Cancelled, it leaves the session as it was.

        Raises: as `append`.
        """
        with self._alone():
            started = time.perf_counter()
            view, work = await asyncio.to_thread(self._perceive, utterance, samples, frames, deadline_ms, started)
            if self._window is not None and work.asks_llm():
                with work.advised():
                    steps = self._window.steps(view, work.scores, work)
                    view = await answered_async(steps, self._window.runner)
            return await asyncio.to_thread(self._conclude, view, work)

    def analysis(self) -> Analysis:
        """All that is in view, as `Pipeline.analyze` gives it.

        Raises: InputError: nothing was said yet, or another call is under way.
        """
        with self._alone():
            view = self._view
            if not len(view):
                raise InputError("nothing was said yet", hint="append an utterance")
            work = Work.on(view.utterances, self._parts.bundle.fusion)
            with work.timed("fusion"):
                work.scores = self._fused(view)
            found, pairs = self._decided(view, work)
            return Analysis(self._id, found, pairs, work.finish(), self._parts.bundle.id)

    def snapshot(self) -> bytes:
        """All that is in view as bytes, for `Pipeline.restore_session` in this or another process.

        It holds what was said: keep it as you keep conversations.
        Raises: InputError: an utterance is being spoken, or another call is under way.
        """
        with self._alone():
            if self._listening is not None:
                raise InputError("an utterance is being spoken", hint="append it first, or session.discard()")
            return to_bytes(Snapshot(self._parts.bundle.id, self._id, self._config, self._view))

    def after_fork(self) -> None:
        """Nobody else is using this copy."""
        self._lock = threading.Lock()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Holds the session. It does not wait: whose utterance came first would be left to chance."""
        lock = self._lock
        if not lock.acquire(blocking=False):
            raise InputError("another call on this session is under way", hint="await it first: their order counts")
        try:
            yield
        finally:
            lock.release()

    def _heard(self) -> Listening:
        if self._listening is None:
            self._listening = Listening(self._parts.senses, self._parts.lanes, self._config)
        return self._listening

    def _perceive(
        self,
        utterance: Utterance,
        samples: Samples | None,
        frames: Frames | None,
        deadline_ms: float | None,
        started: float,
    ) -> tuple[View, Work]:
        """What was said, heard and seen, and the fusion's scores of all that is in view."""
        parts, view = self._parts, self._view
        segment = self._segment(utterance, samples, frames)
        n_tokens = parts.senses.n_tokens(utterance)
        work = Work.on((utterance,), parts.bundle.fusion)
        work.started, work.costs, work.n_tokens = started, parts.costs, n_tokens
        if deadline_ms is not None:
            work.deadline = self._deadline(deadline_ms, started, n_tokens, segment)
        reading: list[Future[None]] = []
        if utterance.media is not None and parts.senses.reads_media:
            with parts.readers.reader() as reader:
                for _, decoded in segments(Conversation(self._id, (utterance,)), reader, parts.senses, work):
                    reading += [parts.lanes.submit(step) for step in parts.senses.steps(0, decoded, work)]
        elif segment is not None:
            reading += [parts.lanes.submit(step) for step in parts.senses.steps(0, segment, work)]
        words = read_words(
            (*view.utterances, utterance),
            np.append(view.n_tokens, n_tokens),
            parts.senses,
            self._config.text_tokens,
            work,
        )
        for one in reading:
            one.result()
        if self._listening is not None:
            self._listening.put_into(work, _duration_s(utterance))
        work.inputs.text_mask[-1:] = words.known[-1:]
        work.missing[0].update(words.missing)
        if not work.has_evidence:
            detail = "; ".join(f"{modality}: {reason}" for modality, reason in work.missing[0].items())
            raise InputError(
                f"utterance {utterance.id} has nothing to analyse{f' ({detail})' if detail else ''}",
                hint="give text, samples, frames or a clip",
            )
        view = view.with_new(utterance, work.inputs, work.missing[0], n_tokens, self._config.turns)
        words.of_last(len(view)).put_into(view.inputs)
        with work.timed("fusion", 1.0):
            work.scores = self._fused(view)
            if view.soft is not None and parts.adviser is not None and view.inputs.evident()[-1]:
                soft = parts.adviser.soft_tokens(view.inputs)
                if soft is not None:
                    view.soft.tokens[-1], view.soft.evident[-1] = soft.tokens[-1], True
        return view, work

    def _segment(self, utterance: Utterance, samples: Samples | None, frames: Frames | None) -> Segment | None:
        """What was given of an utterance.

        Raises: InputError: as `append`.
        """
        known = self._view.utterances
        if known and utterance.id <= known[-1].id:
            raise InputError(
                f"utterance id {utterance.id} comes after {known[-1].id}", hint="give utterances rising ids"
            )
        given = samples is not None or frames is not None
        if given + (utterance.media is not None) + (self._listening is not None) > 1:
            raise InputError(
                f"utterance {utterance.id} has its voice or frames from two sources",
                hint="give them to append, name a clip, or stream them in; session.discard() forgets what was streamed",
            )
        if not given:
            return None
        if samples is not None:
            checked_samples(samples)
        if frames is not None:
            n, most = len(checked_frames(frames)), self._parts.bundle.fusion.n_frames
            frames = frames[[int((k + 0.5) / most * n) for k in range(most)]] if n > most else frames
        duration_s = 0.0 if samples is None else len(samples) / SAMPLE_RATE
        return Segment(0.0, duration_s, samples, frames, {})

    def _deadline(self, ms: float, started: float, n_tokens: int, segment: Segment | None) -> Deadline:
        """The deadline of an utterance, and what is to be done until then."""
        parts = self._parts
        deadline = Deadline(ms, parts.costs, parts.lanes.n, started)
        deadline.expect("text", min(self._config.text_tokens, n_tokens + int(self._view.n_tokens.sum())))
        deadline.expect("fusion", 1.0)
        if self._window is not None:
            deadline.expect("llm", n_tokens)
        if segment is not None and segment.samples is not None:
            deadline.expect("audio", len(segment.samples) / SAMPLE_RATE)
        if segment is not None and segment.frames is not None:
            for modality in ("face", "scene"):
                if modality in parts.senses.modalities:
                    deadline.expect(modality, len(segment.frames))
        return deadline

    def _fused(self, view: View) -> FusionScores:
        return run_fusion(self._parts.fusion, view.inputs, self._parts.bundle.fusion)

    def _decided(self, view: View, work: Work) -> tuple[tuple[UtteranceAnalysis, ...], tuple[Pair, ...]]:
        """Labels and pairs of all that is in view."""
        bundle, adviser = self._parts.bundle, self._parts.adviser
        scores, constants = work.scores, bundle.decision
        with work.timed("decide"):
            if adviser is not None and bundle.llama is not None:
                scores, constants = adviser.weigh(scores, view.answers), bundle.llama.decision
            decision = decide(
                scores.emotion_logits, scores.pair_logits, constants, scores.first_cause, view.inputs.text_mask
            )
            missing = [dict(reasons) for reasons in view.missing]
            return answers(view.utterances, view.inputs, missing, decision, self._parts.senses.modalities)

    def _conclude(self, view: View, work: Work) -> SessionUpdate:
        """The update, and the session as it is from now on."""
        found, pairs = self._decided(view, work)
        of_each: dict[int, list[Pair]] = {u.id: [] for u in found}
        for pair in pairs:
            of_each[pair.emotion_utterance].append(pair)
        told = tuple((u.emotion, tuple(pair.cause_utterance for pair in of_each[u.id])) for u in found)
        revisions = tuple(
            Revision(u, tuple(of_each[u.id]), *before)
            for u, before, now in zip(found[:-1], view.told[:-1], told[:-1], strict=True)
            if before != now
        )
        self._view, self._listening = replace(view, told=told), None
        if self._window is not None:
            self._window.read_ahead(self._view)
        newest = found[-1]
        return SessionUpdate(newest, tuple(of_each[newest.id]), revisions, work.finish(), self._parts.bundle.id)


def _duration_s(utterance: Utterance) -> float | None:
    return None if utterance.start_s is None or utterance.end_s is None else utterance.end_s - utterance.start_s


def _soft_shape(parts: SessionParts) -> tuple[int, int] | None:
    """Soft tokens an utterance and their width, where the Llama reads any."""
    return None if parts.adviser is None else parts.adviser.soft_shape
