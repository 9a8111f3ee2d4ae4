"""MLPerf's server: queries arrive by a Poisson process; the highest rate whose p99 stays below a bound is looked for.

A query's latency runs from when it arrived to when it was answered, its time in the queue included. Arrivals come from
a fixed seed, the same for every rate but for their pace.
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
LEAST_SHARE = 0.25
"""Of the machine's throughput: the rate that is tried first. Where it does not hold, none is looked for: single queries
take too long for the bound, and slow arrivals too long to measure."""
N_HALVINGS = 3
"""Of the range from there to the throughput: what is found is at most a tenth of it too low."""
MIN_QUERIES = 12
GIVEN_UP = 4.0
"""A trial ends when a query has waited for this many bounds: its rate is too high, however it would go on."""


@dataclass(frozen=True, slots=True)
class ServerTrial:
    """One rate. holds: whether its p99 is below the bound; False too where it was ended early."""

    queries_per_s: float
    holds: bool
    latency: Latency


@dataclass(frozen=True, slots=True)
class Server:
    """queries_per_s: the highest rate that held, 0 where none did. capacity_per_s: throughput with no bound."""

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
    """Look for the highest rate.

    capacity_per_s: conversations a second that the offline scenario reached; no rate above it can hold.
    duration_s: of arrivals, in each trial.
    """
    rate, low, high = LEAST_SHARE * capacity_per_s, 0.0, capacity_per_s
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
    """Seconds from the start at which queries arrive, at least `MIN_QUERIES` of them."""
    random = np.random.default_rng(SEED)
    n_most = max(MIN_QUERIES, int(4 * rate * duration_s) + 1)
    times = np.cumsum(random.exponential(1 / rate, n_most))
    n_kept = max(MIN_QUERIES, int(np.searchsorted(times, duration_s)))
    return [float(at) for at in times[:n_kept]]


def _trial(
    system: System, conversation: Conversation, rate: float, bound_ms: float, n_workers: int, duration_s: float
) -> ServerTrial:
    finished: list[float] = []
    given_up = False

    def answer(arrived: float) -> None:
        if given_up:
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
            if finished and max(finished[-n_workers:]) > GIVEN_UP * bound_ms:
                given_up = True
                break
            waiting.append(pool.submit(answer, start + at))
        for one in waiting:
            one.result()
            given_up = given_up or finished[-1] > GIVEN_UP * bound_ms
    latency = Latency.of(finished)
    return ServerTrial(round(rate, 3), not given_up and latency.p99_ms <= bound_ms, latency)
