"""MLPerf's offline scenario: all queries are there at the start, and several threads share one pipeline."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from mechm.bench.systems import System
from mechm_runtime.system.progress import StageProgress
from mechm_runtime.types import Conversation


@dataclass(frozen=True, slots=True)
class Offline:
    """Throughput of one system.

    n_workers: threads that analyse conversations. n_threads: threads inside an operator, per worker.
    """

    system: str
    conversation: str
    n_queries: int
    n_workers: int
    n_threads: int
    seconds: float
    conversations_per_s: float
    utterances_per_s: float


def run_offline(
    system: System,
    conversations: Sequence[Conversation],
    described: str,
    *,
    n_workers: int,
    n_threads: int,
    on_progress: StageProgress,
) -> Offline:
    """Analyse all conversations, `n_workers` at the same time.

    described: the conversations in words, for the result.
    """
    system.analyze(conversations[0])  # the first run loads the parts and allocates memory
    start = time.perf_counter()
    with ThreadPoolExecutor(n_workers) as pool:
        waiting = [pool.submit(system.analyze, conversation) for conversation in conversations]
        for done, one in enumerate(as_completed(waiting), 1):
            one.result()
            on_progress(done, len(waiting))
    seconds = time.perf_counter() - start
    n_utterances = sum(len(conversation.utterances) for conversation in conversations)
    return Offline(
        system.name,
        described,
        len(conversations),
        n_workers,
        n_threads,
        round(seconds, 3),
        round(len(conversations) / seconds, 3),
        round(n_utterances / seconds, 2),
    )
