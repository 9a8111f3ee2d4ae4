"""Cost of an analysis against the length of the conversation, the length of utterances, and the number of callers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from mechm.bench.machine import resident_bytes
from mechm.bench.systems import System
from mechm.bench.workload import with_length, with_utterance_seconds
from mechm_runtime.system.progress import Progress
from mechm_runtime.types import Conversation

UTTERANCES = (1, 5, 10, 20, 50)
SECONDS = (1.0, 3.0, 10.0, 30.0)
CALLERS = (1, 2, 4, 8)
REPEATS = 3
MEASURED_S = 4.0
"""Seconds per point: a point is repeated until then, and callers call for at least so long."""


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement.

    x: utterances, seconds per utterance, or callers. ms: median latency of `n` conversations. per_s: conversations per
    second, of all callers together. grown_mb: growth of the process's memory since its first analysis; None if unknown.
    """

    x: float
    ms: float
    n: int
    per_s: float
    grown_mb: float | None


@dataclass(frozen=True, slots=True)
class Scaling:
    """Three series of one system.

    utterances: one caller, longer and longer conversations. seconds: the same utterances, each longer; empty without a
    recording. callers: at the same time, with the conversation as it was given.
    """

    system: str
    conversation: str
    utterances: tuple[Point, ...]
    seconds: tuple[Point, ...]
    callers: tuple[Point, ...]


def run_scaling(system: System, conversation: Conversation, described: str, *, on_progress: Progress) -> Scaling:
    """Measure a prepared system.

    described: the conversation in words, for the result.
    """
    longest_s = max((u.end_s or 0.0 for u in conversation.utterances), default=0.0)
    lengths = [seconds for seconds in SECONDS if conversation.media is not None and seconds <= longest_s]
    n_points = len(UTTERANCES) + len(lengths) + len(CALLERS)
    done = iter(range(n_points + 1))
    system.analyze(conversation)  # the first run loads the parts and allocates memory
    before = resident_bytes()

    def points(kind: str, xs: Sequence[float], measure: Callable[[float], Point]) -> Iterator[Point]:
        for x in xs:
            on_progress(f"scaling by {kind}: {x:g}", next(done), n_points)
            yield measure(x)

    utterances = points(
        "utterances", UTTERANCES, lambda x: _alone(system, with_length(conversation, int(x)), x, before)
    )
    seconds = points("seconds", lengths, lambda x: _alone(system, with_utterance_seconds(conversation, x), x, before))
    callers = points("callers", CALLERS, lambda x: _together(system, conversation, int(x), before))
    return Scaling(
        system.name,
        described,
        tuple(utterances),
        tuple(seconds),
        tuple(callers),
    )


def _alone(system: System, conversation: Conversation, x: float, before: int | None) -> Point:
    taken: list[float] = []
    while len(taken) < REPEATS and sum(taken) < MEASURED_S:
        start = time.perf_counter()
        system.analyze(conversation)
        taken.append(time.perf_counter() - start)
    median_s = float(np.median(taken))
    return Point(x, round(1000 * median_s, 3), len(taken), round(1 / median_s, 4), _grown_mb(before))


def _together(system: System, conversation: Conversation, n_callers: int, before: int | None) -> Point:
    """Each caller sends its next query as soon as it is answered, until `MEASURED_S` have passed."""
    started = time.perf_counter()

    def call(_: int) -> list[float]:
        taken: list[float] = []
        while not taken or time.perf_counter() - started < MEASURED_S:
            start = time.perf_counter()
            system.analyze(conversation)
            taken.append(time.perf_counter() - start)
        return taken

    with ThreadPoolExecutor(n_callers) as pool:
        taken = [s for one in pool.map(call, range(n_callers)) for s in one]
    seconds = time.perf_counter() - started
    ms = round(1000 * float(np.median(taken)), 3)
    return Point(n_callers, ms, len(taken), round(len(taken) / seconds, 4), _grown_mb(before))


def _grown_mb(before: int | None) -> float | None:
    held = resident_bytes()
    return None if held is None or before is None else round((held - before) / 1e6, 1)
