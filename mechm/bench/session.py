"""A conversation that goes on: what the newest utterance costs early and late, how many sessions fit, what each holds.

Utterances have three seconds of voice and the frames that the bundle reads, decoded beforehand out of the recording;
each is shifted a little, so that no two are the same. Where an utterance is streamed in, only what is left to do when
it has ended is timed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mechm.bench.machine import resident_bytes
from mechm.bench.systems import Own
from mechm.bench.timing import Latency
from mechm_runtime.analysis.decoding import is_recorded
from mechm_runtime.media import MediaReader
from mechm_runtime.media.segments import SAMPLE_RATE
from mechm_runtime.session.session import Session
from mechm_runtime.system.progress import Progress
from mechm_runtime.types import Conversation, Utterance

TURNS = (5, 20, 100)
STREAMED_TURNS = 20
"""The last turn of a session whose utterances are streamed in."""
VOICE_S = 3.0
HEARD_S = 0.5
"""Seconds of voice that are streamed in at once."""
PAUSE_S = 0.1
"""Between two utterances, much less than people take: what a session does ahead then is not the next one's cost."""
SESSIONS = (1, 2, 4, 8, 16)
ENOUGH_S = 4.0


@dataclass(frozen=True, slots=True)
class Spoken:
    """An utterance as it is appended. samples: float32 (n,), 16 kHz; frames: uint8 (n, H, W, 3); None where absent."""

    utterance: Utterance
    samples: npt.NDArray[np.float32] | None
    frames: npt.NDArray[np.uint8] | None


@dataclass(frozen=True, slots=True)
class Newest:
    """Milliseconds from the end of an utterance to its answer. turn_ms: medians around each of `TURNS`, by turn; each
    is over as many turns as the conversation has utterances, so that all of them are in each."""

    turn_ms: dict[str, float]
    latency: Latency
    session_kb: float


@dataclass(frozen=True, slots=True)
class Together:
    """Sessions at once, each appending as fast as it is answered. resident_mb_each: growth of the process, each."""

    n_sessions: int
    utterances_per_s: float
    p50_ms: float
    p99_ms: float
    session_kb: float
    resident_mb_each: float | None


@dataclass(frozen=True, slots=True)
class SessionTimes:
    """whole: voice and frames are given when the utterance has ended. streamed: while it lasts; None for text."""

    system: str
    utterance: str
    whole: Newest
    streamed: Newest | None
    together: tuple[Together, ...]


def run_session(
    own: Own, conversation: Conversation, n_frames: int, *, turns: Sequence[int] = TURNS, on_progress: Progress
) -> SessionTimes:
    """Measure one of ours.

    n_frames: that the bundle reads of an utterance. turns: the last one ends the session.
    """
    said = spoken(conversation, n_frames)
    _append(own.pipeline.open_session(), said[0], 1)  # loads what it needs, and lets it allocate
    whole = _newest(own, said, turns, streamed=False, on_progress=on_progress)
    is_heard = said[0].samples is not None or said[0].frames is not None
    streamed = None
    if is_heard:
        early = [turn for turn in turns if turn <= STREAMED_TURNS]
        streamed = _newest(own, said, early or turns[:1], streamed=True, on_progress=on_progress)
    together = []
    for number, n_sessions in enumerate(SESSIONS):
        on_progress(f"sessions at once: {own.name}", number, len(SESSIONS))
        together.append(_together(own, said, n_sessions))
    heard = f"{VOICE_S:g} s of voice, {n_frames} frames" if is_heard else "text"
    return SessionTimes(own.name, heard, whole, streamed, tuple(together))


def spoken(conversation: Conversation, n_frames: int) -> list[Spoken]:
    """The conversation's utterances, each with `VOICE_S` of its voice, repeated where it is shorter, and its frames."""
    if not is_recorded(conversation):
        return [Spoken(u, None, None) for u in conversation.utterances]
    found = []
    with MediaReader() as reader:
        for u in conversation.utterances:
            media = u.media or conversation.media
            if media is None or (u.media is None and (u.start_s is None or u.end_s is None)):
                continue
            span = (0.0, VOICE_S) if u.media is not None else (u.start_s or 0.0, u.end_s or 0.0)
            (segment,) = reader.read_segments(media, [span], n_frames=n_frames).segments
            samples = None if segment.samples is None else np.resize(segment.samples, round(VOICE_S * SAMPLE_RATE))
            found.append(Spoken(replace(u, media=None, start_s=None, end_s=None), samples, segment.frames))
    return found


def _shifted(one: Spoken, turn: int) -> Spoken:
    """The same utterance as a new turn, its voice and picture moved a little."""
    return Spoken(
        replace(one.utterance, id=turn),
        None if one.samples is None else np.roll(one.samples, 37 * turn),
        None if one.frames is None else np.roll(one.frames, turn, axis=2),
    )


def _append(session: Session, one: Spoken, turn: int, *, streamed: bool = False) -> float:
    """Append an utterance; milliseconds from its end."""
    now = _shifted(one, turn)
    if streamed:
        pieces = [] if now.samples is None else np.array_split(now.samples, round(VOICE_S / HEARD_S))
        for piece in pieces:
            session.append_audio(piece)
        frames = () if now.frames is None else now.frames
        for number, frame in enumerate(frames):
            session.append_frame(frame, (number + 0.5) * VOICE_S / len(frames))
        time.sleep(PAUSE_S)
        now = Spoken(now.utterance, None, None)
    start = time.perf_counter()
    session.append(now.utterance, samples=now.samples, frames=now.frames)
    return 1000 * (time.perf_counter() - start)


def _newest(own: Own, said: Sequence[Spoken], turns: Sequence[int], *, streamed: bool, on_progress: Progress) -> Newest:
    session = own.pipeline.open_session()
    taken: list[float] = []
    name = f"session{', streamed' if streamed else ''}: {own.name}"
    for turn in range(1, turns[-1] + 1):
        taken.append(_append(session, said[(turn - 1) % len(said)], turn, streamed=streamed))
        time.sleep(PAUSE_S)
        on_progress(name, turn, turns[-1])
    return Newest(
        {str(turn): round(float(np.median(around(taken, turn, len(said)))), 3) for turn in turns},
        Latency.of(taken),
        round(session.n_bytes / 1e3, 1),
    )


def around(taken: Sequence[float], turn: int, n: int) -> Sequence[float]:
    """The n turns around one, or the n at the start or the end where it is near."""
    first = max(0, min(turn - (n + 1) // 2, len(taken) - n))
    return taken[first : first + n]


def _together(own: Own, said: Sequence[Spoken], n_sessions: int) -> Together:
    sessions = [own.pipeline.open_session(str(number)) for number in range(n_sessions)]
    before = resident_bytes()
    started = time.perf_counter()

    def talk(session: Session) -> list[float]:
        taken: list[float] = []
        while not taken or time.perf_counter() - started < ENOUGH_S:
            taken.append(_append(session, said[len(taken) % len(said)], len(taken) + 1))
        return taken

    with ThreadPoolExecutor(n_sessions) as pool:
        taken = [ms for one in pool.map(talk, sessions) for ms in one]
    seconds = time.perf_counter() - started
    after = resident_bytes()
    grown = None if before is None or after is None else round((after - before) / n_sessions / 1e6, 2)
    latency = Latency.of(taken)
    held = sum(session.n_bytes for session in sessions) / n_sessions
    return Together(
        n_sessions, round(len(taken) / seconds, 2), latency.p50_ms, latency.p99_ms, round(held / 1e3, 1), grown
    )
