"""Measures a second thread inside a graph at the sizes that the runtime uses.

    python benchmarks/second_thread.py --bundle DIR [--threads 2]

Every graph of the bundle's default precision runs with one thread and with several, in turns, on inputs of usual sizes
(the values do not matter): voices of 1 to 30 s, 20 to 256 tokens of text, a frame at 480 and at 640 pixels, four faces,
three whole frames. Reports milliseconds and processor time, p50. Limit to expect: a graph of short operators waits for
its threads longer than it computes; then one thread takes as long and leaves the other cores free for parallel work
(`mechm_runtime.engines.part_loader.SINGLE_THREADED_PARTS`, `mechm_runtime.engines.threads_by_length`). Prints a table
and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from mechm_runtime import Bundle, EngineConfig, open_bundle
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.engines.load import load_engine

SECONDS = (1, 2, 3, 4, 5, 6, 8, 12, 30)
TOKENS = (20, 60, 80, 128, 256)

Feeds = dict[str, np.ndarray[Any, Any]]


def inputs(bundle: Bundle) -> Iterator[tuple[str, str, Feeds]]:
    """Part, its size as text, and its inputs."""
    random = np.random.default_rng(0)
    mels, per_second = bundle.log_mel.n_mels, round(bundle.log_mel.frames_per_second)
    for seconds in SECONDS:
        n = seconds * per_second
        mel = random.normal(size=(1, mels, n)).astype(np.float32)
        yield "audio", f"{seconds} s", {"mel": mel, "mel_frames": np.array([n], np.int64)}
    for n in TOKENS:
        ids = random.integers(5, 1000, (1, n))
        yield "text", f"{n} tokens", {"input_ids": ids, "attention_mask": np.ones((1, n), np.int64)}
    for height, width in ((288, 480), (384, 640)):
        pixels = random.integers(0, 256, (1, 3, height, width)).astype(np.float32)
        yield "detector", f"{width} x {height}", {"pixel_values": pixels}
    yield "expression", "4 faces", {"pixel_values": random.normal(size=(4, 1, 64, 64)).astype(np.float32)}
    side = bundle.scene.image_size
    yield "scene", "3 frames", {"pixel_values": random.normal(size=(3, 3, side, side)).astype(np.float32)}


def measure(runners: dict[int, GraphRunner], feeds: Feeds, repeats: int) -> dict[int, tuple[float, float]]:
    """Milliseconds and processor milliseconds, p50, by number of threads."""
    taken: dict[int, list[tuple[float, float]]] = {n: [] for n in runners}
    for runner in runners.values():
        runner.run(feeds)
    for _ in range(repeats):
        for n, runner in runners.items():
            began, used = time.perf_counter(), time.process_time()
            runner.run(feeds)
            taken[n].append((1000 * (time.perf_counter() - began), 1000 * (time.process_time() - used)))
    return {
        n: (float(np.median([ms for ms, _ in each])), float(np.median([c for _, c in each])))
        for n, each in taken.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=None, help="default: the one that make demo built")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=30)
    given = parser.parse_args()
    bundle = open_bundle(given.bundle, check_hashes=False)
    runners: dict[str, dict[int, GraphRunner]] = {}
    rows = []
    for name, size, feeds in track(list(inputs(bundle)), "measuring", transient=True):
        part = bundle.parts[name]
        if name not in runners:
            path = bundle.path(part.files[part.default])
            runners[name] = {n: load_engine(path, EngineConfig(n_threads=n)) for n in (1, given.threads)}
        rows.append((name, size, part.default, measure(runners[name], feeds, given.repeats)))
    print(f"onnxruntime {version('onnxruntime')}, {platform.processor() or platform.machine()}; {bundle.id}")
    headings = [f"{what}, {n}" for what in ("ms", "cpu") for n in (1, given.threads)]
    print(f"{'part':12}{'size':>12}{'':>6}{''.join(f'{heading:>9}' for heading in headings)}")
    for name, size, precision, found in rows:
        (one, one_cpu), (several, several_cpu) = found[1], found[given.threads]
        print(f"{name:12}{size:>12}{precision:>6}{one:9.1f}{several:9.1f}{one_cpu:9.1f}{several_cpu:9.1f}")
    print(
        json.dumps([{"part": name, "size": size, "precision": p, "ms_cpu_by_threads": f} for name, size, p, f in rows])
    )


if __name__ == "__main__":
    main()
