"""Measures the model runs' share of an analysis, and threads inside operators against encoders run in parallel.

Analyses one recording repeatedly with different numbers of threads inside an operator and of lanes (encoders in
parallel), in turns, and compares with the sum of the model runs: every graph run again on the same inputs, one after
the other, with all threads inside the operators and nothing else running.

Limit to expect: with one lane the analysis takes the sum of the model runs (with the face detector's), plus features,
scaling of frames, cropping of faces, and decoding that is not hidden behind them. With one lane per core it can take
less than the sum, since encoders gain more from a second core than operators from a second thread. Prints a table and
one JSON line.

    python benchmarks/overlap.py --bundle DIR sample/conversation.mp4 --transcript sample/conversation.srt
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mechm_runtime import Conversation, EngineConfig, Pipeline, open_bundle, read_transcript
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.engines.spec import ENGINES

Feeds = Mapping[str, npt.NDArray[Any]]


class Recorder:
    """A graph that stores its inputs."""

    def __init__(self, runner: GraphRunner) -> None:
        self.runner = runner
        self.inputs: list[Feeds] = []

    def run(self, inputs: Feeds) -> dict[str, npt.NDArray[Any]]:
        """Run it."""
        self.inputs.append({name: array.copy() for name, array in inputs.items()})
        return self.runner.run(inputs)


def record(bundle: Path | None, conversation: Conversation, config: EngineConfig) -> list[Recorder]:
    """Every graph with its inputs for this conversation."""
    opened = open_bundle(bundle)
    recorders: list[Recorder] = []

    def load(part: Any) -> Recorder:
        recorders.append(
            Recorder(OnnxRuntimeEngine(opened.path(part.files[ENGINES["onnxruntime"].default_precision(part)]), config))
        )
        return recorders[-1]

    Pipeline(opened, engine=config, llm="none", load_part=load).analyze(conversation)
    return recorders


def ms(started: float) -> float:
    """Milliseconds since a start."""
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path)
    parser.add_argument("--transcript", type=Path, required=True)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--ways", nargs="+", default=["1x1", "2x1", "1x2", "2x2"], help="threads x lanes")
    parser.add_argument("--spin", action="store_true")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--first", type=int, help="only the first N utterances")
    options = parser.parse_args()

    (conversation,) = read_transcript(options.transcript, media=options.recording)
    conversation = replace(conversation, utterances=conversation.utterances[: options.first])
    most = EngineConfig(spin=options.spin)
    recorders = record(options.bundle, conversation, most)
    ways: dict[str, Pipeline] = {}
    for way in options.ways:
        threads, lanes = (int(number) for number in way.split("x"))
        config = EngineConfig(n_threads=threads, n_lanes=lanes, spin=options.spin)
        ways[way] = Pipeline.from_bundle(options.bundle, engine=config, llm="none")
        ways[way].analyze(conversation)

    took: dict[str, list[float]] = {"model runs": [], **{way: [] for way in ways}}
    for _ in range(options.runs):
        started = time.perf_counter()
        for recorder in recorders:
            for inputs in recorder.inputs:
                recorder.runner.run(inputs)
        took["model runs"].append(ms(started))
        for way, pipeline in ways.items():
            started = time.perf_counter()
            pipeline.analyze(conversation)
            took[way].append(ms(started))

    print(f"{options.recording.name}, {len(conversation.utterances)} utterances, spinning: {options.spin}")
    print(f"{platform.platform()}, {os.cpu_count()} cores, model runs with {most.threads} threads per operator")
    medians = {name: float(np.median(values)) for name, values in took.items()}
    for name, values in took.items():
        worst, ratio = max(values), medians[name] / medians["model runs"]
        print(f"{name:<10}  p50 {medians[name]:8.1f} ms  slowest {worst:8.1f} ms  {ratio:5.2f} times the model runs")
    print(json.dumps({"recording": options.recording.name, "spin": options.spin, "p50_ms": medians, "runs_ms": took}))


if __name__ == "__main__":
    main()
