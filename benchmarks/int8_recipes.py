"""Compares recipes of int8 for the text encoder: labels kept, F1 and CPU time, in one process.

    python benchmarks/int8_recipes.py --conversations ecf/dev.txt [--trained DIR]

Every recipe is compared with the fp32 graph on the same conversations. Choose on `dev`, never on `test`. CPU time is
process time of the text encoder and the fusion over all conversations, with one thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from mechm.evaluation import score_pairs
from mechm.model.build import pretrained_folder
from mechm_export.check_data import check_conversations
from mechm_export.graphs.part import Int8Recipe
from mechm_export.graphs.trace import export_graph
from mechm_export.parts import build_parts
from mechm_export.precision.dynamic_int8 import quantize_int8
from mechm_runtime import EMOTIONS, EngineConfig, Pair, read_labelled
from mechm_runtime.bundle.config import TextConfig
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.fusion.decision import decide
from mechm_runtime.fusion.inputs import FusionInputs
from mechm_runtime.fusion.run import run_fusion
from mechm_runtime.modalities.text import TextEncoder
from mechm_runtime.modalities.text_windows import ConversationTokenizer

RECIPES = {
    "plain dynamic int8": Int8Recipe(),
    "+ embeddings by row": Int8Recipe(embeddings=True),
    "+ smoothing 0.5": Int8Recipe(embeddings=True, smoothing=0.5),
    "+ smoothing 0.8": Int8Recipe(embeddings=True, smoothing=0.8),
    "+ smoothing 0.8, down projections fp32": Int8Recipe(embeddings=True, smoothing=0.8, keep_down_projections=True),
    "+ a scale a token": Int8Recipe(embeddings=True, token_scales=True),
    "+ a scale a token, smoothing 0.5": Int8Recipe(embeddings=True, token_scales=True, smoothing=0.5),
    "+ a scale a token, smoothing 0.8": Int8Recipe(embeddings=True, token_scales=True, smoothing=0.8),
    "no smoothing, down projections fp32": Int8Recipe(embeddings=True, keep_down_projections=True),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One recipe's result."""

    recipe: str
    megabytes: float
    labels_kept: float
    weighted_f1: float
    cpu_s: float


def main() -> None:
    """Run all recipes and print a table and one JSON line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--conversations", type=Path, required=True)
    arguments.add_argument("--trained", type=Path, default=None)
    given = arguments.parse_args()
    labelled = read_labelled(given.conversations)
    model = build_parts("small", given.trained or pretrained_folder("small"))
    tokenizer = ConversationTokenizer(model.tokenizer, TextConfig())
    windows = [tokenizer(one.conversation.utterances) for one in check_conversations()]
    feeds = [{"input_ids": w.input_ids, "attention_mask": w.attention_mask} for w in windows]
    config = EngineConfig(n_threads=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = {part.name: part for part in model}
        export_graph(parts["text"], folder / "text.onnx", "portable")
        export_graph(parts["text"], folder / "fused.onnx", "fused")
        export_graph(parts["fusion"], folder / "fusion.onnx", "portable")
        fusion = OnnxRuntimeEngine(folder / "fusion.onnx", config)

        def run(recipe: str, graph: Path) -> tuple[Row, list[int]]:
            reader = TextEncoder(tokenizer, OnnxRuntimeEngine(graph, config))
            labels: list[int] = []
            pairs: dict[str, list[Pair]] = {}
            start = time.process_time()
            for one in labelled:
                utterances = one.conversation.utterances
                inputs = FusionInputs.absent(utterances, model.fusion_windows)
                reader.encode(utterances, inputs)
                scores = run_fusion(fusion, inputs, model.fusion_windows)
                decided = decide(scores.emotion_logits, scores.pair_logits, model.decision, scores.first_cause)
                labels += decided.labels.tolist()
                pairs[one.conversation.id] = [
                    Pair(utterances[i].id, EMOTIONS[decided.labels[i]], utterances[j].id, p)
                    for i, j, p in decided.pairs
                ]
            cpu_s = time.process_time() - start
            f1 = score_pairs(labelled, pairs).weighted.f1
            same = [a == b for a, b in zip(labels, reference or labels, strict=True)]
            return Row(recipe, graph.stat().st_size / 1e6, sum(same) / len(same), f1, cpu_s), labels

        reference: list[int] = []
        first, reference = run("fp32", folder / "text.onnx")
        rows = [first]
        for name_, recipe in RECIPES.items():
            quantize_int8(folder / "fused.onnx", folder / "int8.onnx", recipe, feeds)
            rows.append(run(name_, folder / "int8.onnx")[0])
    print(f"{given.conversations.name}: {len(labelled)} conversations, {len(reference)} utterances; one thread")
    print(f"onnxruntime {version('onnxruntime')}, onnx {version('onnx')}, torch {version('torch')}")
    print(f"{'recipe':42}{'MB':>7}{'labels kept':>13}{'weighted F1':>13}{'CPU s':>8}{'speed':>7}")
    for row in rows:
        speed = first.cpu_s / row.cpu_s
        print(
            f"{row.recipe:42}{row.megabytes:7.1f}{row.labels_kept:13.4f}{row.weighted_f1:13.4f}"
            f"{row.cpu_s:8.2f}{speed:7.2f}"
        )
    print(json.dumps([{slot: getattr(row, slot) for slot in Row.__slots__} for row in rows]))


if __name__ == "__main__":
    main()
