"""Measures the Llama's gain over the fusion alone: the task's scores on text, with the time per conversation.

    python benchmarks/llama_adds.py --bundle DIR --gold ecf/test.txt

Runs the bundle's graphs on the CPU, one conversation at a time, without and with the Llama, in fp32 and in int8 on
onnxruntime, and with int8 weights on OpenVINO if the bundle was exported for it (`--engine openvino`); with --url also
the fusion in int8 with a vLLM server; in turns on the same conversations. For a bundle without a Llama, the fusion
alone. Limit to expect: the Llama reads every token twice, with slightly more parameters than the fusion's text encoder,
so an analysis takes at least twice as long.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np

from mechm.evaluation import score_emotions, score_pairs
from mechm_runtime import Analysis, EngineConfig, EngineName, Llm, Pipeline, ServerConfig, open_bundle, read_labelled
from mechm_runtime.bundle.precision import PORTABLE_INT8

SYSTEMS: tuple[tuple[Llm, EngineName, str], ...] = (
    ("none", "onnxruntime", "fp32"),
    ("none", "onnxruntime", "int8"),
    ("none", "openvino", PORTABLE_INT8),
    ("onnx", "onnxruntime", "fp32"),
    ("onnx", "onnxruntime", "int8"),
    ("onnx", "openvino", PORTABLE_INT8),
    ("vllm", "onnxruntime", "int8"),
)
"""Where the Llama runs, the engine, and the precision."""


def main() -> None:
    """Analyse every conversation with every system and print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=None, help="default: the one that make demo built")
    parser.add_argument("--gold", type=Path, required=True, help="annotated conversations")
    parser.add_argument("--url", default=None, help="a server that `mechm serve llm` started with this bundle")
    parser.add_argument(
        "--asked-below", type=float, default=None, help="default: the bundle's own; 1 asks about every utterance"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, default=None, help="only the first conversations")
    given = parser.parse_args()
    labelled = read_labelled(given.gold)[: given.limit]
    bundle = open_bundle(given.bundle)
    precisions = {precision for part in bundle.parts.values() for precision in part.files}
    answering = {"none", *(["onnx"] if bundle.llama is not None else []), *(["vllm"] if given.url else [])}
    systems = [system for system in SYSTEMS if system[0] in answering and system[2] in precisions]
    pipelines = [
        Pipeline(
            bundle,
            precisions={name: p for name, part in bundle.parts.items() for p in (precision,) if p in part.files},
            engine=EngineConfig(n_threads=given.threads, engine=engine),
            llm=llm,
            server=ServerConfig(given.url, timeout_s=600.0) if llm == "vllm" else None,
            asked_below=None if llm == "none" else given.asked_below,
        )
        for llm, engine, precision in systems
    ]
    analyses: list[list[Analysis]] = [[] for _ in systems]
    for one in labelled:
        # In turns, so that a machine that slows down slows all of them.
        for pipeline, found in zip(pipelines, analyses, strict=True):
            found.append(pipeline.analyze(one.conversation))
    print(
        f"{given.gold.name}, {len(labelled)} conversations, text; onnxruntime {version('onnxruntime')}, "
        f"{given.threads} threads, {platform.machine()}; bundle {pipelines[0].bundle_id}"
    )
    headings = f"{'weighted F1':>13}{'micro F1':>10}{'emotion accuracy':>18}{'p50 ms':>9}{'p99 ms':>9}"
    print(f"{'llm':6}{'engine':13}{'precision':11}{headings}")
    rows = []
    for (llm, engine, precision), found in zip(systems, analyses, strict=True):
        pairs = score_pairs(labelled, {a.conversation_id: a.pairs for a in found})
        emotions = score_emotions(labelled, {a.conversation_id: [u.emotion for u in a.utterances] for a in found})
        p50, p99 = np.percentile([a.timings_ms["total"] for a in found], [50, 99])
        print(
            f"{llm:6}{engine:13}{precision:11}{pairs.weighted.f1:13.4f}{pairs.micro.f1:10.4f}{emotions.accuracy:18.4f}"
            f"{p50:9.1f}{p99:9.1f}"
        )
        rows.append(
            {
                "llm": llm,
                "engine": engine,
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
