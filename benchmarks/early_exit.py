"""Measures accuracy and time when the Llama rescores only utterances that the fusion is unsure of.

    python benchmarks/early_exit.py --bundle DIR --gold ecf/dev.txt

Runs the bundle's default graphs on the CPU, text alone, one conversation at a time, with several thresholds of the
fusion's probability (`Pipeline(asked_below=...)`), in turns on the same conversations. The bundle's own threshold is
among them; it was chosen on `dev` (`mechm train combination`). Limit to expect: at 0, time and accuracy are those of
the fusion alone; above 0 the Llama has to read the conversation however few questions there are.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import track

from mechm.evaluation import score_emotions, score_pairs
from mechm_runtime import Analysis, BundleError, EngineConfig, Pipeline, open_bundle, read_labelled
from mechm_runtime.bundle.manifest import LLAMA, PartFiles
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.engines.part_loader import PartLoader

BOUNDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Counting:
    """Runs the Llama's graph and counts its questions."""

    def __init__(self, engine: GraphRunner) -> None:
        self._engine = engine
        self.n_asked = 0

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph on arrays by input name; returns arrays by output name."""
        self.n_asked += len(inputs["emotion_at"])
        return self._engine.run(inputs)


def main() -> None:
    """Analyse every conversation with every bound and print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=None, help="default: the one that make demo built")
    parser.add_argument("--gold", type=Path, required=True, help="annotated conversations")
    parser.add_argument("--bounds", type=float, nargs="+", default=BOUNDS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, default=None, help="only the first conversations")
    given = parser.parse_args()
    labelled = read_labelled(given.gold)[: given.limit]
    bundle = open_bundle(given.bundle)
    if bundle.llama is None:
        raise BundleError("the bundle has no Llama to leave unasked", hint="mechm export bundle --adapter DIR")
    chosen = bundle.llama.combination.asked_below
    bounds = sorted({*given.bounds, chosen})
    loader = PartLoader(bundle, {}, EngineConfig(n_threads=given.threads))
    shared: dict[str, GraphRunner] = {}
    counting = Counting(loader(bundle.parts[LLAMA]))
    shared[LLAMA] = counting

    def load(part: PartFiles) -> GraphRunner:
        if part.name not in shared:
            shared[part.name] = loader(part)
        return shared[part.name]

    pipelines = [Pipeline(bundle, load_part=load, llm="onnx", asked_below=bound) for bound in bounds]
    found: list[list[Analysis]] = [[] for _ in bounds]
    n_asked = np.zeros(len(bounds), np.int64)
    for one in track(labelled, transient=True):
        for at, pipeline in enumerate(pipelines):
            before = counting.n_asked
            found[at].append(pipeline.analyze(one.conversation))
            n_asked[at] += counting.n_asked - before
    n_utterances = sum(len(one.conversation.utterances) for one in labelled)
    print(
        f"{given.gold.name}, {len(labelled)} conversations, text; onnxruntime {version('onnxruntime')}, "
        f"{given.threads} threads, {platform.machine()}; bundle {bundle.id}, which has {chosen:g}"
    )
    print(f"{'asked below':>12}{'asked':>8}{'weighted F1':>13}{'accuracy':>10}{'ms p50':>9}{'p99':>9}")
    rows = []
    for bound, analyses, asked in zip(bounds, found, n_asked, strict=True):
        f1 = score_pairs(labelled, {a.conversation_id: a.pairs for a in analyses}).weighted.f1
        emotions = {a.conversation_id: [u.emotion for u in a.utterances] for a in analyses}
        accuracy = score_emotions(labelled, emotions).accuracy
        p50, p99 = np.percentile([a.timings_ms["total"] for a in analyses], [50, 99])
        share = asked / n_utterances
        print(f"{bound:12g}{share:8.2f}{f1:13.4f}{accuracy:10.4f}{p50:9.1f}{p99:9.1f}")
        rows.append(
            {
                "asked_below": bound,
                "asked": round(float(share), 3),
                "weighted_f1": round(f1, 4),
                "emotion_accuracy": round(accuracy, 4),
                "p50_ms": round(float(p50), 1),
                "p99_ms": round(float(p99), 1),
            }
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
