"""What does the Llama add to the fusion, and for how many milliseconds? Scores of the task on text, with their time.

    python benchmarks/llama_adds.py --bundle DIR --gold ecf/test.txt

The bundle's graphs in onnxruntime on the CPU, one conversation at a time, without the Llama and with it, in fp32 and in
int8, in turns on the same conversations; of a bundle without a Llama, the fusion's two alone. The limit to expect: the
Llama reads every word twice, with a little more than the parameters of the fusion's text encoder, so it takes at least
twice as long; the accuracy is what it is for.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np

from mechm.evaluation import score_emotions, score_pairs
from mechm_runtime.advice import Llm
from mechm_runtime.bundle import open_bundle
from mechm_runtime.engine import EngineConfig
from mechm_runtime.pipeline import Pipeline, Precision
from mechm_runtime.readers import read_labelled
from mechm_runtime.types import Analysis

SYSTEMS: tuple[tuple[Llm, Precision], ...] = (("none", "fp32"), ("none", "int8"), ("onnx", "fp32"), ("onnx", "int8"))


def main() -> None:
    """Analyse every conversation with every system and print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=None, help="default: the one that make demo built")
    parser.add_argument("--gold", type=Path, required=True, help="annotated conversations")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, default=None, help="only the first conversations")
    given = parser.parse_args()
    labelled = read_labelled(given.gold)[: given.limit]
    engine = EngineConfig(n_threads=given.threads)
    has_llama = open_bundle(given.bundle).llama is not None
    systems = [(llm, p) for llm, p in SYSTEMS if has_llama or llm == "none"]
    pipelines = [Pipeline.from_bundle(given.bundle, precision=p, llm=llm, engine=engine) for llm, p in systems]
    analyses: list[list[Analysis]] = [[] for _ in systems]
    for one in labelled:
        # In turns, so that a machine that slows down slows them all.
        for pipeline, found in zip(pipelines, analyses, strict=True):
            found.append(pipeline.analyze(one.conversation))
    print(
        f"{given.gold.name}, {len(labelled)} conversations, text; onnxruntime {version('onnxruntime')}, "
        f"{given.threads} threads, {platform.machine()}; bundle {pipelines[0].bundle_id}"
    )
    headings = f"{'weighted F1':>13}{'micro F1':>10}{'emotion accuracy':>18}{'p50 ms':>9}{'p99 ms':>9}"
    print(f"{'llm':6}{'precision':11}{headings}")
    rows = []
    for (llm, precision), found in zip(systems, analyses, strict=True):
        pairs = score_pairs(labelled, {a.conversation_id: a.pairs for a in found})
        emotions = score_emotions(labelled, {a.conversation_id: [u.emotion for u in a.utterances] for a in found})
        p50, p99 = np.percentile([a.timings_ms["total"] for a in found], [50, 99])
        print(
            f"{llm:6}{precision:11}{pairs.weighted.f1:13.4f}{pairs.micro.f1:10.4f}{emotions.accuracy:18.4f}"
            f"{p50:9.1f}{p99:9.1f}"
        )
        rows.append(
            {
                "llm": llm,
                "precision": precision,
                "weighted_f1": round(pairs.weighted.f1, 4),
                "micro_f1": round(pairs.micro.f1, 4),
                "emotion_accuracy": round(emotions.accuracy, 4),
                "p50_ms": round(float(p50), 1),
                "p99_ms": round(float(p99), 1),
            }
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
