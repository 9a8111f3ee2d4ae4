"""The session scenario: latency of the newest utterance early and late, and throughput and memory of several sessions.

Utterances have three seconds of voice and as many frames as the bundle reads, decoded beforehand from the recording and
shifted a little, so that no two are the same. If an utterance is streamed in, only the work left at its end is timed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mechm.bench.machine import resident_bytes
from mechm.bench.systems import MechmSystem
from mechm.bench.timing import Latency
from mechm_runtime.analysis.decoding import is_recorded
from mechm_runtime.media import MediaReader
from mechm_runtime.media.segments import SAMPLE_RATE
from mechm_runtime.session.session import Session
from mechm_runtime.system.progress import Progress
from mechm_runtime.types import Conversation, Utterance

TURNS = (5, 20, 100)
"""Turns around which the latency is reported; the last one ends a session."""
STREAMED_TURNS = 20
"""The last turn of a session whose utterances are streamed in."""
VOICE_S = 3.0
CHUNK_S = 0.5
"""Seconds of voice per call when an utterance is streamed in."""
PAUSE_S = 0.1
"""Between two utterances, much shorter than in real conversations: time for the work that a session does in advance."""
SESSIONS = (1, 2, 4, 8, 16)
MEASURED_S = 4.0
"""Seconds that sessions are run for together."""


@dataclass(frozen=True, slots=True)
class DecodedUtterance:
    """An utterance as it is appended. samples: float32 (n,), 16 kHz; frames: uint8 (n, H, W, 3); None where absent."""

    utterance: Utterance
    samples: npt.NDArray[np.float32] | None
    frames: npt.NDArray[np.uint8] | None


@dataclass(frozen=True, slots=True)
class NewestTimes:
    """Milliseconds from the end of an utterance to its answer.

    turn_ms: median by turn, over as many turns around it as the conversation has utterances, so that each median is
    over all of them. session_kb: memory of the session at its end.
    """

    turn_ms: dict[str, float]
    latency: Latency
    session_kb: float


@dataclass(frozen=True, slots=True)
class ConcurrentSessions:
    """Sessions at the same time, each appending its next utterance as soon as it is answered.

    session_kb: memory per session. resident_mb_each: growth of the process per session; None if unknown.
    """

    n_sessions: int
    utterances_per_s: float
    p50_ms: float
    p99_ms: float
    session_kb: float
    resident_mb_each: float | None


@dataclass(frozen=True, slots=True)
class SessionTimes:
    """whole: voice and frames are given at the end of an utterance. streamed: while it lasts; None for text alone.

    utterance: in words. together: one entry per number of sessions.
    """

    system: str
    utterance: str
    whole: NewestTimes
    streamed: NewestTimes | None
    together: tuple[ConcurrentSessions, ...]


def run_session(
    own: MechmSystem, conversation: Conversation, n_frames: int, *, turns: Sequence[int] = TURNS, on_progress: Progress
) -> SessionTimes:
    """Measure one configuration of MECHM.

    n_frames: frames per utterance that the bundle reads. turns: as `TURNS`.
    """
    utterances = decoded_utterances(conversation, n_frames)
    _append(own.pipeline.open_session(), utterances[0], 1)  # loads the parts and allocates memory
    whole = _time_newest(own, utterances, turns, streamed=False, on_progress=on_progress)
    has_media = utterances[0].samples is not None or utterances[0].frames is not None
    streamed = None
    if has_media:
        early = [turn for turn in turns if turn <= STREAMED_TURNS]
        streamed = _time_newest(own, utterances, early or turns[:1], streamed=True, on_progress=on_progress)
    together = []
    for number, n_sessions in enumerate(SESSIONS):
        on_progress(f"sessions at once: {own.name}", number, len(SESSIONS))
        together.append(_time_sessions(own, utterances, n_sessions))
    described = f"{VOICE_S:g} s of voice, {n_frames} frames" if has_media else "text"
    return SessionTimes(own.name, described, whole, streamed, tuple(together))


def decoded_utterances(conversation: Conversation, n_frames: int) -> list[DecodedUtterance]:
    """The conversation's utterances, each with its frames and `VOICE_S` of its voice, repeated if it is shorter."""
    if not is_recorded(conversation):
        return [DecodedUtterance(u, None, None) for u in conversation.utterances]
    found = []
    with MediaReader() as reader:
        for u in conversation.utterances:
            media = u.media or conversation.media
            if media is None or (u.media is None and (u.start_s is None or u.end_s is None)):
                continue
            span = (0.0, VOICE_S) if u.media is not None else (u.start_s or 0.0, u.end_s or 0.0)
            (segment,) = reader.read_segments(media, [span], n_frames=n_frames).segments
            samples = None if segment.samples is None else np.resize(segment.samples, round(VOICE_S * SAMPLE_RATE))
            found.append(DecodedUtterance(replace(u, media=None, start_s=None, end_s=None), samples, segment.frames))
    return found


def _shifted(one: DecodedUtterance, turn: int) -> DecodedUtterance:
    """The same utterance as a new turn, its voice and frames shifted a little."""
    return DecodedUtterance(
        replace(one.utterance, id=turn),
        None if one.samples is None else np.roll(one.samples, 37 * turn),
        None if one.frames is None else np.roll(one.frames, turn, axis=2),
    )


def _append(session: Session, one: DecodedUtterance, turn: int, *, streamed: bool = False) -> float:
    """Append an utterance; returns the milliseconds from its end to its answer."""
    now = _shifted(one, turn)
    if streamed:
        pieces = [] if now.samples is None else np.array_split(now.samples, round(VOICE_S / CHUNK_S))
        for piece in pieces:
            session.append_audio(piece)
        frames = () if now.frames is None else now.frames
        for number, frame in enumerate(frames):
            session.append_frame(frame, (number + 0.5) * VOICE_S / len(frames))
        time.sleep(PAUSE_S)
        now = DecodedUtterance(now.utterance, None, None)
    start = time.perf_counter()
    session.append(now.utterance, samples=now.samples, frames=now.frames)
    return 1000 * (time.perf_counter() - start)


def _time_newest(
    own: MechmSystem,
    utterances: Sequence[DecodedUtterance],
    turns: Sequence[int],
    *,
    streamed: bool,
    on_progress: Progress,
) -> NewestTimes:
    session = own.pipeline.open_session()
    taken: list[float] = []
    name = f"session{', streamed' if streamed else ''}: {own.name}"
    for turn in range(1, turns[-1] + 1):
        taken.append(_append(session, utterances[(turn - 1) % len(utterances)], turn, streamed=streamed))
        time.sleep(PAUSE_S)
        on_progress(name, turn, turns[-1])
    return NewestTimes(
        {str(turn): round(float(np.median(times_around(taken, turn, len(utterances)))), 3) for turn in turns},
        Latency.of(taken),
        round(session.n_bytes / 1e3, 1),
    )


def times_around(taken: Sequence[float], turn: int, n: int) -> Sequence[float]:
    """The times of the n turns around one, or of the first or last n if it is near the start or the end."""
    first = max(0, min(turn - (n + 1) // 2, len(taken) - n))
    return taken[first : first + n]


def _time_sessions(own: MechmSystem, utterances: Sequence[DecodedUtterance], n_sessions: int) -> ConcurrentSessions:
    sessions = [own.pipeline.open_session(str(number)) for number in range(n_sessions)]
    before = resident_bytes()
    started = time.perf_counter()

    def run(session: Session) -> list[float]:
        taken: list[float] = []
        while not taken or time.perf_counter() - started < MEASURED_S:
            taken.append(_append(session, utterances[len(taken) % len(utterances)], len(taken) + 1))
        return taken

    with ThreadPoolExecutor(n_sessions) as pool:
        taken = [ms for one in pool.map(run, sessions) for ms in one]
    seconds = time.perf_counter() - started
    after = resident_bytes()
    grown = None if before is None or after is None else round((after - before) / n_sessions / 1e6, 2)
    latency = Latency.of(taken)
    held = sum(session.n_bytes for session in sessions) / n_sessions
    return ConcurrentSessions(
        n_sessions, round(len(taken) / seconds, 2), latency.p50_ms, latency.p99_ms, round(held / 1e3, 1), grown
    )
