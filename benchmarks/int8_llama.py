"""Compares recipes of int8 for the Llama: size, divergence, answers kept and CPU time, in one process.

    python benchmarks/int8_llama.py --adapter runs/llm --conversations ecf/dev.txt [--limit 16]

Every recipe is compared with the fp32 graph on every question of the same conversations: mean divergence in nats of the
emotions' and of the causes' answers, and the share of questions with the same likeliest answer. Channels are smoothed
on other conversations (those that come with mechm), as in an export. CPU time is process time with one thread. Choose
on `dev`, never on `test`; the gate of a bundle decides on the labels of fusion and Llama.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mechm.model.build import pretrained_folder
from mechm.weights import weights_path
from mechm_export.bundle.calibration import smooth_llama
from mechm_export.gate.check_set import shipped_check_set
from mechm_export.graphs.part import ExportPart, Feeds
from mechm_export.llama.graph import TOKEN_SCALED, write_llama_graph
from mechm_export.llama.part import llama_parts, load_llama_source, question_inputs
from mechm_runtime import EngineConfig, read_labelled
from mechm_runtime.bundle.manifest import LLAMA, PartFiles
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.llm.graph import LlamaGraph

RECIPES: dict[str, tuple[bool, frozenset[str]]] = {
    "a scale a tensor": (False, frozenset()),
    "a scale a token in down projections": (False, TOKEN_SCALED),
    "channels evened out, a scale a tensor": (True, frozenset()),
    "channels evened out, a scale a token in down projections": (True, TOKEN_SCALED),
    "channels evened out, also a token in output projections": (True, TOKEN_SCALED | {"self_attn.o_proj"}),
    "channels evened out, a scale a token everywhere": (True, frozenset({"_proj"})),
}
"""By recipe: whether channels are smoothed, and the layers whose activations have one scale per token."""

Outputs = list[dict[str, npt.NDArray[np.float32]]]


@dataclass(frozen=True, slots=True)
class Row:
    """One recipe's result, for emotions and for causes."""

    recipe: str
    megabytes: float
    emotion_kl: float
    cause_kl: float
    emotions_kept: float
    causes_kept: float
    cpu_ms: float


def main() -> None:
    """Run all recipes and print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, default=pretrained_folder("small") / "llm")
    parser.add_argument(
        "--trained", type=Path, default=pretrained_folder("small"), help="the fusion that it is combined with"
    )
    parser.add_argument("--conversations", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=16)
    given = parser.parse_args()
    source = load_llama_source(weights_path("llm", "small"), given.adapter, given.trained)
    asked = question_inputs(source, [one.conversation for one in read_labelled(given.conversations)[: given.limit]])
    (part,) = (part for part in llama_parts(source) if part.name == LLAMA)
    positions = source.questions.max_tokens
    with tempfile.TemporaryDirectory() as name:
        plain, quantized = Path(name) / "fp32.onnx", Path(name) / "int8.onnx"
        write_llama_graph(part, plain, "fp32", positions)
        reference, cpu_ms = _run(part, plain, asked)
        rows = [_row("fp32", plain, reference, reference, cpu_ms)]
        evened = False
        for recipe, (evens, token_scaled) in RECIPES.items():
            if evens and not evened:
                smooth_llama(source, shipped_check_set())
                evened = True
            write_llama_graph(part, quantized, "int8", positions, token_scaled)
            outputs, cpu_ms = _run(part, quantized, asked)
            rows.append(_row(recipe, quantized, reference, outputs, cpu_ms))
    n_questions = sum(len(one["emotion_at"]) for one in asked)
    print(f"{given.conversations.name}: {len(asked)} conversations, {n_questions} questions; one thread")
    print(f"onnxruntime {version('onnxruntime')}, onnx {version('onnx')}, torch {version('torch')}")
    print(f"{'recipe':60}{'MB':>7}{'KL emotion':>12}{'KL cause':>10}{'kept':>8}{'kept':>8}{'CPU ms':>9}")
    for row in rows:
        print(
            f"{row.recipe:60}{row.megabytes:7.0f}{row.emotion_kl:12.4f}{row.cause_kl:10.4f}{row.emotions_kept:8.4f}"
            f"{row.causes_kept:8.4f}{row.cpu_ms:9.0f}"
        )
    print(json.dumps([asdict(row) for row in rows]))


def _run(part: ExportPart, graph: Path, feeds: Sequence[Feeds]) -> tuple[Outputs, float]:
    """Run a graph; returns the answers, and milliseconds of CPU time per conversation."""
    files = PartFiles(part.name, part.inputs, part.outputs, {}, "")
    engine = LlamaGraph(OnnxRuntimeEngine(graph, EngineConfig(n_threads=1)), files)
    engine.run(feeds[0])
    start = time.process_time()
    outputs = [engine.run(one) for one in feeds]
    return outputs, 1000 * (time.process_time() - start) / len(feeds)


def _row(recipe: str, graph: Path, reference: Outputs, outputs: Outputs, cpu_ms: float) -> Row:
    kl, kept = [], []
    for name in ("emotion_log_probabilities", "cause_log_probabilities"):
        expected, found = (np.concatenate([one[name] for one in answers]) for answers in (reference, outputs))
        kl.append(float((np.exp(expected) * (expected - found)).sum(-1).mean()))
        kept.append(float((expected.argmax(-1) == found.argmax(-1)).mean()))
    return Row(recipe, graph.stat().st_size / 1e6, kl[0], kl[1], kept[0], kept[1], cpu_ms)


if __name__ == "__main__":
    main()
