"""How fast, how large and how alike is an exported encoder, against torch eager and torch.compile in one process?

    python benchmarks/encoders.py [--encoder NAME ...] [--precision P ...] [--batch N ...] [--threads N ...]

mpnet, whisper-tiny and dinov2-small have real weights (`mechm weights fetch --preset small`); clip-base, siglip-base,
hubert-base, wavlm-base and eva-clip-g random ones at their real shapes, which makes cosines optimistic: only the former
say what a precision costs. A latency is the median of --repeats calls, the engines taking turns; a ratio is torch
eager's over the graph's. torch.compile needs a C++ compiler. eva-clip-g has 1 B parameters and is measured only where
it is named: 8 GB of disk, and in fp32 8.5 GB of memory at its peak with --no-latency.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf

from mechm.quiet import quiet_transformers
from mechm.weights import weights_path
from mechm_export.data import check_conversations
from mechm_export.encoders.axes import PRECISIONS, parse_axes
from mechm_export.encoders.export import FILES, EncoderReport, export_encoder
from mechm_export.part import Feeds
from mechm_runtime.engine import Engine, EngineConfig

EVA: dict[str, Any] = {
    "hidden_size": 1408,
    "intermediate_size": 6144,
    "num_hidden_layers": 39,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "initializer_range": 0.02,
}


@dataclass(frozen=True, slots=True)
class Encoder:
    """One encoder to measure.

    part: of the preset `small`, for real weights; model: makes it with random ones. sizes: of its dynamic axes other
    than batch, where it is timed.
    """

    part: str = ""
    model: Callable[[], Any] | None = None
    axes: str | None = None
    modality: Any = None
    sizes: Mapping[str, int] | None = None


ENCODERS = {
    "mpnet": Encoder("text", sizes={"tokens": 64}),
    "whisper-tiny": Encoder("audio", sizes={"frames": 500}),
    "dinov2-small": Encoder("scene", axes="batch,height=224"),
    "clip-base": Encoder(
        model=lambda: tf.CLIPVisionModelWithProjection(tf.CLIPVisionConfig(patch_size=16)), modality="vision"
    ),
    "siglip-base": Encoder(model=lambda: tf.SiglipVisionModel(tf.SiglipVisionConfig()), modality="vision"),
    "hubert-base": Encoder(model=lambda: tf.HubertModel(tf.HubertConfig()), sizes={"samples": 80_000}),
    "wavlm-base": Encoder(model=lambda: tf.WavLMModel(tf.WavLMConfig()), sizes={"samples": 80_000}),
    "eva-clip-g": Encoder(model=lambda: tf.Blip2VisionModel(tf.Blip2VisionConfig(**EVA))),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One graph at one batch size and number of threads; latencies in ms, 0 where nothing was timed."""

    encoder: str
    weights: str
    precision: str
    megabytes: float
    export_s: float
    largest_difference: float
    cosine: float
    batch: int = 0
    threads: int = 0
    graph_ms: float = 0.0
    eager_ms: float = 0.0
    compiled_ms: float = 0.0


def main() -> None:
    """Measure and print a table and one JSON line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--encoder", choices=list(ENCODERS), nargs="+", default=[*list(ENCODERS)[:-1]])
    arguments.add_argument("--precision", choices=PRECISIONS, nargs="+", default=["fp32", "int8"])
    arguments.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    arguments.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments.add_argument("--repeats", type=int, default=10)
    arguments.add_argument("--no-latency", action="store_true")
    given = arguments.parse_args()
    rows: list[Row] = []
    refused: dict[str, Mapping[Any, str]] = {}
    for name in given.encoder:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            report = _export(name, Path(folder), out, given.precision)
            refused[name] = report.refused
            rows += _facts(name, report) if given.no_latency else _timed(name, report, out, given)
    print(
        f"{platform.processor() or platform.machine()}, torch {version('torch')}, onnxruntime {version('onnxruntime')}"
    )
    print(
        f"{'encoder':14}{'weights':>8}{'precision':>10}{'MB':>8}{'export s':>9}{'difference':>11}{'cosine':>9}"
        f"{'batch':>6}{'threads':>8}{'ms':>9}{'to eager':>9}{'to compiled':>12}"
    )
    for row in rows:
        compiled = f"{row.compiled_ms / row.graph_ms:12.2f}" if row.compiled_ms else f"{'-':>12}"
        timed = f"{row.graph_ms:9.1f}{row.eager_ms / row.graph_ms:9.2f}{compiled}" if row.graph_ms else ""
        print(
            f"{row.encoder:14}{row.weights:>8}{row.precision:>10}{row.megabytes:8.1f}{row.export_s:9.1f}"
            f"{row.largest_difference:11.1e}{row.cosine:9.5f}{row.batch:6}{row.threads:8}{timed}"
        )
    for name, reasons in refused.items():
        for precision, reason in reasons.items():
            print(f"{name}: {precision} was left out: {reason}")
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")
    print(json.dumps([asdict(row) for row in rows]))


def _export(name: str, folder: Path, out: Path, precisions: list[Any]) -> EncoderReport:
    encoder = ENCODERS[name]
    if encoder.model is None:
        source = weights_path(encoder.part, "small")
    else:
        source = folder / name
        torch.manual_seed(0)
        with quiet_transformers():
            encoder.model().save_pretrained(source)
    return export_encoder(
        str(source),
        out,
        modality=encoder.modality,
        precisions=precisions,
        axes=parse_axes(encoder.axes),
        conversations=[one.conversation for one in check_conversations()],
    )


def _facts(name: str, report: EncoderReport) -> list[Row]:
    weights = "real" if ENCODERS[name].part else "random"
    return [
        Row(
            name,
            weights,
            graph.precision,
            round(graph.size_bytes / 1e6, 1),
            round(graph.export_s, 1),
            graph.check.largest_difference,
            graph.check.cosine,
        )
        for graph in report.graphs
    ]


def _timed(name: str, report: EncoderReport, out: Path, given: argparse.Namespace) -> list[Row]:
    module = report.part.module
    # As fast as torch is by itself: the export's own attention is written out.
    for part in module.modules():
        if (config := getattr(part, "config", None)) is not None and hasattr(config, "_attn_implementation"):
            config._attn_implementation = "sdpa" if getattr(part, "_supports_sdpa", True) else "eager"
    compiled: Any = torch.compile(module) if shutil.which("g++") or shutil.which("clang++") else None
    rows: list[Row] = []
    for threads in given.threads:
        torch.set_num_threads(threads)
        config = EngineConfig(n_threads=threads)
        engines = {graph.precision: Engine(out / FILES[graph.precision], config) for graph in report.graphs}
        for batch in given.batch:
            sizes = {"batch": batch, **(ENCODERS[name].sizes or {})}
            feeds = report.part.trial_inputs(sizes, np.random.default_rng(0))
            if "attention_mask" in feeds:  # all of the same length, so that nobody gains by leaving padding out
                feeds["attention_mask"] = np.ones_like(feeds["attention_mask"])
            tensors = [torch.from_numpy(feeds[tensor.name]) for tensor in report.part.inputs]
            calls: dict[str, Callable[[], object]] = {"eager": _torch_call(module, tensors)}
            if compiled is not None:
                calls["compiled"] = _torch_call(compiled, tensors)
            calls |= {precision: _graph_call(engine, feeds) for precision, engine in engines.items()}
            ms = _medians(calls, given.repeats)
            for row in _facts(name, report):
                facts = asdict(row) | {"batch": batch, "threads": threads, "graph_ms": ms[row.precision]}
                rows.append(Row(**facts | {"eager_ms": ms["eager"], "compiled_ms": ms.get("compiled", 0.0)}))
    return rows


def _torch_call(module: Any, tensors: list[torch.Tensor]) -> Callable[[], object]:
    def call() -> object:
        with torch.inference_mode():
            return module(*tensors)

    return call


def _graph_call(engine: Engine, feeds: Feeds) -> Callable[[], object]:
    return lambda: engine.run(feeds)


def _medians(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds a call; the calls take turns, so that what else the machine does meets all of them."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(2):
        for call in calls.values():
            call()
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in taken.items()}


if __name__ == "__main__":
    main()
