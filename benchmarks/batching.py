"""Measures whether joining the runs of concurrent conversations into batches is faster on this machine.

Threads analyse text conversations with one pipeline as fast as they can, with and without joined runs, in turns.
Reports conversations per second and milliseconds per conversation for 1, 4 and 16 threads. With one thread nothing can
be joined, so both must be alike.

Limit to expect: on a CPU a large batch costs as much as its parts, so joining saves little more than the overhead of a
call and loses on padding; on a GPU a batch of 16 costs hardly more than one conversation. Prints a table and one JSON
line.

    python benchmarks/batching.py --bundle DIR --conversations ecf/dev.txt
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import numpy as np

from mechm_runtime import BatchConfig, Conversation, EngineConfig, EngineName, Pipeline, Precision, read_labelled


def measure(pipeline: Pipeline, talks: Sequence[Conversation], n_threads: int) -> tuple[float, list[float]]:
    """Analyse all conversations; returns conversations per second and the milliseconds of each."""
    took: list[float] = []

    def analyse(talk: Conversation) -> None:
        began = time.perf_counter()
        pipeline.analyze(talk)
        took.append(1000 * (time.perf_counter() - began))

    began = time.perf_counter()
    with ThreadPoolExecutor(n_threads) as pool:
        for _ in pool.map(analyse, talks):
            pass
    return len(talks) / (time.perf_counter() - began), took


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--conversations", type=Path, required=True, help="ECF, for its words")
    parser.add_argument("--limit", type=int, default=48, help="conversations")
    parser.add_argument("--engine", choices=get_args(EngineName), default="onnxruntime")
    parser.add_argument("--engine-threads", type=int, default=1, help="inside an operator")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--max-runs", type=int, default=1, help="joined runs at the same time")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    talks = [labelled.conversation for labelled in read_labelled(options.conversations)[: options.limit]]
    config = EngineConfig(engine=options.engine, n_threads=options.engine_threads)
    precision: Precision | None = "fp32" if options.engine == "onnxruntime" else None
    ways = {
        name: Pipeline.from_bundle(options.bundle, engine=config, llm="none", precision=precision, batching=batching)
        for name, batching in (("each by itself", None), ("joined", BatchConfig(max_runs=options.max_runs)))
    }
    for pipeline in ways.values():
        measure(pipeline, talks[:8], 4)

    print(f"{len(talks)} conversations, {options.engine}, {options.engine_threads} threads inside an operator")
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    found = []
    for n_threads in options.threads:
        rates: dict[str, list[float]] = {name: [] for name in ways}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, pipeline in ways.items():
                rate, took = measure(pipeline, talks, n_threads)
                rates[name].append(rate)
                times[name] += took
        for name in ways:
            p50, p99 = np.percentile(times[name], [50, 99])
            rate = statistics.median(rates[name])
            gain = rate / statistics.median(rates["each by itself"])
            print(
                f"{n_threads:>3} threads  {name:<15} {rate:7.1f} /s  p50 {p50:7.1f} ms  p99 {p99:7.1f} ms  {gain:5.2f}"
            )
            found.append({"threads": n_threads, "way": name, "per_s": rate, "p50_ms": p50, "p99_ms": p99, "gain": gain})
    print(json.dumps({"engine": options.engine, "n_conversations": len(talks), "found": found}))


if __name__ == "__main__":
    main()
