"""MLPerf's server scenario: the highest rate of Poisson arrivals whose p99 latency stays below a bound.

A query's latency runs from its arrival to its answer, including its time in the queue. Arrivals come from a fixed seed
and differ between rates only in their pace.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from mechm.bench.systems import System
from mechm.bench.timing import Latency
from mechm_runtime.system.progress import StageProgress
from mechm_runtime.types import Conversation

SEED = 20_261_126
FIRST_SHARE = 0.25
"""The rate tried first, as a share of the throughput. If it does not hold, the search ends: single queries take too
long for the bound, and slower arrivals too long to measure."""
N_HALVINGS = 3
"""Of the range between that rate and the throughput: the result is at most a tenth of the throughput too low."""
MIN_QUERIES = 12
ABORT_FACTOR = 4.0
"""A trial ends early when a query has taken this many times the bound: its rate is too high in any case."""


@dataclass(frozen=True, slots=True)
class ServerTrial:
    """One rate. holds: whether its p99 is below the bound; False as well if it was ended early."""

    queries_per_s: float
    holds: bool
    latency: Latency


@dataclass(frozen=True, slots=True)
class Server:
    """queries_per_s: the highest rate that held, 0 if none did. capacity_per_s: throughput without a bound."""

    system: str
    conversation: str
    bound_ms: float
    n_workers: int
    n_threads: int
    seed: int
    capacity_per_s: float
    queries_per_s: float
    trials: tuple[ServerTrial, ...]


def run_server(
    system: System,
    conversation: Conversation,
    described: str,
    *,
    bound_ms: float,
    capacity_per_s: float,
    n_workers: int,
    n_threads: int,
    duration_s: float,
    on_progress: StageProgress,
) -> Server:
    """Find the highest rate by halving.

    capacity_per_s: conversations per second of the offline scenario; no higher rate can hold.
    duration_s: of the arrivals in each trial.
    """
    rate, low, high = FIRST_SHARE * capacity_per_s, 0.0, capacity_per_s
    trials: list[ServerTrial] = []
    while len(trials) <= N_HALVINGS and (low or not trials):
        trials.append(_trial(system, conversation, rate, bound_ms, n_workers, duration_s))
        low, high = (rate, high) if trials[-1].holds else (low, rate)
        rate = (low + high) / 2
        on_progress(len(trials), 1 + N_HALVINGS)
    return Server(
        system.name,
        described,
        bound_ms,
        n_workers,
        n_threads,
        SEED,
        round(capacity_per_s, 3),
        round(low, 3),
        tuple(trials),
    )


def arrival_times(rate: float, duration_s: float) -> list[float]:
    """Arrival times in seconds from the start, at least `MIN_QUERIES` of them."""
    random = np.random.default_rng(SEED)
    n_most = max(MIN_QUERIES, int(4 * rate * duration_s) + 1)
    times = np.cumsum(random.exponential(1 / rate, n_most))
    n_kept = max(MIN_QUERIES, int(np.searchsorted(times, duration_s)))
    return [float(at) for at in times[:n_kept]]


def _trial(
    system: System, conversation: Conversation, rate: float, bound_ms: float, n_workers: int, duration_s: float
) -> ServerTrial:
    finished: list[float] = []
    aborted = False

    def answer(arrived: float) -> None:
        if aborted:
            return
        system.analyze(conversation)
        finished.append(1000 * (time.perf_counter() - arrived))

    waiting: list[Future[None]] = []
    with ThreadPoolExecutor(n_workers) as pool:
        start = time.perf_counter()
        for at in arrival_times(rate, duration_s):
            delay_s = start + at - time.perf_counter()
            if delay_s > 0:
                time.sleep(delay_s)
            if finished and max(finished[-n_workers:]) > ABORT_FACTOR * bound_ms:
                aborted = True
                break
            waiting.append(pool.submit(answer, start + at))
        for one in waiting:
            one.result()
            aborted = aborted or finished[-1] > ABORT_FACTOR * bound_ms
    latency = Latency.of(finished)
    return ServerTrial(round(rate, 3), not aborted and latency.p99_ms <= bound_ms, latency)
