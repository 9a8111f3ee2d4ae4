"""Measures how often, and by how much, answers come after their deadline when many threads call one pipeline.

Threads analyse conversations of four kinds with deadlines drawn at random, each as fast as it can: a short text, a
long text, the sample recording, and two minutes of sound as one utterance. Reports per kind the calls, those that came
late, milliseconds of lateness (p50 and p99 of the late ones, the worst), the worst ratio of time to deadline, and the
share of calls in which at least one utterance was read.

Limit to expect: a call may outlast its deadline by one run of a graph, which other runs slow down: some tens of
milliseconds. Prints a table and one JSON line, and writes the JSON with `--out`.

    python benchmarks/deadlines.py --bundle DIR --seconds 180 --threads 16
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import tempfile
import threading
import time
import wave
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from mechm_runtime import Analysis, Conversation, EngineConfig, Pipeline, Utterance, read_transcript

DEADLINES_MS = (50, 100, 200, 500, 1000, 2000)
LONG_TURNS = 200
LONG_VOICE_S = 120
SAMPLE = Path(__file__).parent.parent / "sample"


@dataclass(frozen=True)
class Call:
    """One call: its kind of conversation, its deadline, and what came of it."""

    kind: str
    deadline_ms: float
    took_ms: float
    is_read: bool

    @property
    def late_ms(self) -> float:
        """Milliseconds after the deadline."""
        return max(0.0, self.took_ms - self.deadline_ms)


def make_conversations(folder: Path) -> dict[str, Conversation]:
    """The conversations by their kind; the long sound is written to `folder`."""
    (sample,) = read_transcript(SAMPLE / "conversation.srt")
    turns = sample.utterances
    said = tuple(Utterance(u.id, u.speaker, u.text) for u in turns)
    long = tuple(Utterance(k + 1, said[k % len(said)].speaker, said[k % len(said)].text) for k in range(LONG_TURNS))
    noise = np.random.default_rng(0).normal(0, 2000, LONG_VOICE_S * 16_000).astype("<i2")
    with wave.open(str(folder / "long.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(noise.tobytes())
    voice = Utterance(1, "A", "A long speech.", 0.0, float(LONG_VOICE_S))
    return {
        "short text": Conversation("short", said),
        "long text": Conversation("long", long),
        "recording": Conversation("recording", turns, SAMPLE / "conversation.mp4"),
        "long voice": Conversation("voice", (voice,), folder / "long.wav"),
    }


def call_for(pipeline: Pipeline, talks: Mapping[str, Conversation], until: float, seed: int, calls: list[Call]) -> None:
    """Call the pipeline until a time of `time.monotonic`; appends to `calls`."""
    chosen = random.Random(seed)  # noqa: S311
    while time.monotonic() < until:
        kind, deadline_ms = chosen.choice(sorted(talks)), chosen.choice(DEADLINES_MS)
        began = time.perf_counter()
        analysis = pipeline.analyze(talks[kind], deadline_ms=deadline_ms)
        took_ms = 1000 * (time.perf_counter() - began)
        calls.append(Call(kind, deadline_ms, took_ms, is_read(analysis)))


def is_read(analysis: Analysis) -> bool:
    """Whether any utterance was read."""
    return any(utterance.modalities for utterance in analysis.utterances)


def summary(calls: list[Call]) -> dict[str, float]:
    """Counts and lateness of some calls."""
    late = [call.late_ms for call in calls if call.late_ms > 0]
    p50, p99 = np.percentile(late, [50, 99]) if late else (0.0, 0.0)
    return {
        "calls": len(calls),
        "late": len(late),
        "late_over_10_percent": sum(call.took_ms > 1.1 * call.deadline_ms for call in calls),
        "late_p50_ms": round(float(p50), 1),
        "late_p99_ms": round(float(p99), 1),
        "late_worst_ms": round(max(late, default=0.0), 1),
        "worst_ratio": round(max((call.took_ms / call.deadline_ms for call in calls), default=0.0), 2),
        "read": round(sum(call.is_read for call in calls) / max(1, len(calls)), 3),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--engine-threads", type=int, default=0, help="inside an operator; 0 for the default")
    parser.add_argument("--out", type=Path, help="write the JSON there")
    options = parser.parse_args()

    calls: list[Call] = []
    engine = EngineConfig(n_threads=options.engine_threads)
    with (
        tempfile.TemporaryDirectory() as folder,
        Pipeline.from_bundle(options.bundle, engine=engine) as pipeline,
    ):
        talks = make_conversations(Path(folder))
        for kind in ("short text", "recording"):  # loads what is used, and learns what it costs
            pipeline.analyze(talks[kind])
        until = time.monotonic() + options.seconds
        threads = [
            threading.Thread(target=call_for, args=(pipeline, talks, until, seed, calls))
            for seed in range(options.threads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        bundle_id, llm = pipeline.bundle_id, pipeline.llm

    found = {"all": summary(calls)}
    for kind in sorted(talks):
        found[kind] = summary([call for call in calls if call.kind == kind])
    machine = {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("mechm", "onnxruntime", "numpy", "av")},
        "bundle": bundle_id,
        "llm": llm,
        "engine": asdict(engine),
        "threads": options.threads,
        "seconds": options.seconds,
        "deadlines_ms": DEADLINES_MS,
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(
        f"{'':<12}{'calls':>7}{'late':>7}{'>10 %':>7}{'p50 ms':>9}{'p99 ms':>9}{'worst ms':>10}{'ratio':>8}{'read':>7}"
    )
    for kind, numbers in found.items():
        n, late, much, p50, p99, worst, ratio, read = numbers.values()
        print(f"{kind:<12}{n:>7}{late:>7}{much:>7}{p50:>9.1f}{p99:>9.1f}{worst:>10.1f}{ratio:>8.2f}{read:>7.2f}")
    line = json.dumps({"machine": machine, "found": found})
    print(line)
    if options.out is not None:
        options.out.write_text(line + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
