"""Speed, size and cosine of exported encoders, against torch eager and torch.compile in one process.

    python benchmarks/encoders.py [--encoder NAME ...] [--bundle DIR] [--optimum .venv-optimum/bin/python] [--quick]
                                  [--out benchmarks/results/encoders/2-cores.json]

A row is a graph: of onnxruntime in the precisions of `mechm export encoder`; of OpenVINO in bfloat16, with int8 weights
and activations quantized as they come, and with scales from real inputs (static); and, with --optimum, of optimum-cli
in fp32 and int8, made in an environment of its own (`make optimum`), run by the same onnxruntime in this process.

mpnet, whisper-tiny and dinov2-small have real weights (`mechm weights fetch --preset small`); clip-base, siglip-base,
hubert-base, wavlm-base and eva-clip-g random ones at their real shapes, which makes cosines optimistic: only the former
say what a precision costs. Graphs are compared with torch on real inputs, and calibrated on others: sentences for mpnet
or the shipped recording (for whisper-tiny and dinov2-small as the bundle --bundle prepares it; random without one).

A latency is the median of --repeats calls, the engines taking turns; a ratio is torch eager's over the graph's, at the
same input. Where a rival's graph takes one size alone, as optimum's Whisper does 30 s, its input is padded to that.
torch.compile needs a C++ compiler, and compiles for every size anew (--no-compile leaves it out). eva-clip-g has 1 B
parameters and is measured only where it is named: 8 GB of disk, and in fp32 8.5 GB of memory at its peak with
--no-latency. --quick takes those with real weights, batch 1, one thread and 3 repeats. --out keeps the rows, encoder by
encoder, and writes a page of tables beside them.

Limits to expect, AVX512-VNNI: int8 3.5 times torch eager.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder_graphs import (
    ENCODERS,
    Candidate,
    Row,
    Subject,
    export_subject,
    onnxruntime_graphs,
    openvino_graphs,
    optimum_graphs,
    padded,
)
from encoder_results import keep

from mechm_export.encoders.axes import PRECISIONS
from mechm_export.encoders.trials import MASK
from mechm_export.graphs.part import Feeds
from mechm_runtime import Bundle, open_bundle
from mechm_runtime.engines.base import GraphRunner

REAL = tuple(name for name, encoder in ENCODERS.items() if encoder.part)
TARGETS = ("onnxruntime", "openvino")
COMMAND = "python benchmarks/encoders.py --bundle DIR --optimum .venv-optimum/bin/python --out FILE.json"


def main() -> None:
    """Measure and print a table and one JSON line."""
    given = _arguments()
    bundle = None if given.bundle is None else open_bundle(given.bundle, check_hashes=False)
    rows: list[Row] = []
    notes: list[str] = []
    for name in given.encoder:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{name}: exporting", file=sys.stderr)
            subject = export_subject(name, Path(folder), given.precision, bundle)
            notes += [f"{name}: {p} was left out: {reason}" for p, reason in subject.report.refused.items()]
            candidates = [*onnxruntime_graphs(subject)]
            if "openvino" in given.target:
                print(f"{name}: for OpenVINO", file=sys.stderr)
                candidates += openvino_graphs(subject, notes)
            if given.optimum is not None:
                print(f"{name}: optimum-cli", file=sys.stderr)
                candidates += optimum_graphs(subject, given.optimum, Path(folder), notes)
            measured = [c.row for c in candidates] if given.no_latency else _timed(subject, candidates, given)
        rows += measured
        if given.out is not None:
            of_it = [note for note in notes if note.startswith(f"{name}:")]
            print(f"wrote {keep(given.out, measured, of_it, COMMAND)}", file=sys.stderr)
    _print(rows, notes, bundle)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", choices=list(ENCODERS), nargs="+")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=["fp32", "int8"], help="of onnxruntime")
    parser.add_argument("--target", choices=TARGETS, nargs="+", help="default: those that are installed")
    parser.add_argument("--bundle", type=Path, help="of preset small: real inputs for voice and picture, and its F1")
    parser.add_argument("--optimum", type=Path, metavar="PYTHON", help="of an environment with optimum-onnx")
    parser.add_argument("--batch", type=int, nargs="+")
    parser.add_argument("--threads", type=int, nargs="+")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--no-latency", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="keep the rows, beside those of other encoders")
    given = parser.parse_args()
    given.encoder = given.encoder or (REAL if given.quick else [*list(ENCODERS)[:-1]])
    given.batch = given.batch or ([1] if given.quick else [1, 8])
    given.threads = given.threads or ([1] if given.quick else [1, 2])
    given.repeats = given.repeats or (3 if given.quick else 10)
    given.target = given.target or [name for name in TARGETS if find_spec(name) is not None]
    if given.optimum is not None and not given.optimum.exists():
        parser.error(f"there is no {given.optimum}: make optimum")
    return given


def _timed(subject: Subject, candidates: Sequence[Candidate], given: argparse.Namespace) -> list[Row]:
    module = subject.part.module
    # As fast as torch is by itself: the export's own attention is written out.
    for inner in module.modules():
        if (config := getattr(inner, "config", None)) is not None and hasattr(config, "_attn_implementation"):
            config._attn_implementation = "sdpa" if getattr(inner, "_supports_sdpa", True) else "eager"
    compiles = not given.no_compile and (shutil.which("g++") or shutil.which("clang++"))
    rows: list[Row] = []
    for threads in given.threads:
        torch.set_num_threads(threads)
        engines = [candidate.engine(threads) for candidate in candidates]
        for number, sizes in enumerate(ENCODERS[subject.name].sizes):
            for batch in given.batch if number == 0 else [1]:
                size = " ".join(f"{axis}={n}" for axis, n in sizes.items())
                print(f"{subject.name}: timing {size} batch={batch} threads={threads}", file=sys.stderr)
                feeds = subject.part.trial_inputs({"batch": batch, **sizes}, np.random.default_rng(0))
                if MASK in feeds:  # all of the same length, so that nobody gains by leaving padding out
                    feeds[MASK] = np.ones_like(feeds[MASK])
                tensors = [torch.from_numpy(feeds[tensor.name]) for tensor in subject.part.inputs]
                calls: dict[Any, Callable[[], object]] = {"eager": _torch_call(module, tensors)}
                if compiles:
                    torch._dynamo.reset()  # else the second size would get kernels for any size
                    calls["compiled"] = _torch_call(torch.compile(module, dynamic=False), tensors)
                for index, candidate in enumerate(candidates):
                    calls[index] = _graph_call(engines[index], padded(subject.part, feeds, candidate.fixed))
                ms = _medians(calls, given.repeats)
                for index, candidate in enumerate(candidates):
                    rows.append(
                        replace(
                            candidate.row,
                            size=size,
                            batch=batch,
                            threads=threads,
                            graph_ms=ms[index],
                            eager_ms=ms["eager"],
                            compiled_ms=ms.get("compiled", 0.0),
                        )
                    )
    return rows


def _torch_call(module: Any, tensors: list[torch.Tensor]) -> Callable[[], object]:
    def call() -> object:
        with torch.inference_mode():
            return module(*tensors)

    return call


def _graph_call(engine: GraphRunner, feeds: Feeds) -> Callable[[], object]:
    return lambda: engine.run(feeds)


def _medians(calls: Mapping[Any, Callable[[], object]], repeats: int) -> dict[Any, float]:
    """Median milliseconds a call; the calls take turns, so that what else the machine does meets all of them."""
    taken: dict[Any, list[float]] = {name: [] for name in calls}
    for _ in range(2):
        for call in calls.values():
            call()
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in taken.items()}


def _print(rows: Sequence[Row], notes: Sequence[str], bundle: Bundle | None) -> None:
    versions = [f"{name} {version(name)}" for name in ("torch", *TARGETS) if find_spec(name) is not None]
    print(f"{platform.processor() or platform.machine()}, {', '.join(versions)}")
    print(
        f"{'encoder':14}{'weights':>8}{'target':>12}{'precision':>10}{'MB':>8}{'export s':>9}{'peak GB':>8}"
        f"{'difference':>11}{'cosine':>9}{'size':>16}{'batch':>6}{'threads':>8}{'ms':>9}{'to eager':>9}"
        f"{'to compiled':>12}"
    )
    for row in rows:
        compiled = f"{row.compiled_ms / row.graph_ms:12.2f}" if row.compiled_ms else f"{'-':>12}"
        timed = f"{row.graph_ms:9.1f}{row.eager_ms / row.graph_ms:9.2f}{compiled}" if row.graph_ms else ""
        print(
            f"{row.encoder:14}{row.weights:>8}{row.target:>12}{row.precision:>10}{row.megabytes:8.1f}"
            f"{row.export_s:9.1f}{row.peak_gb:8.2f}{row.largest_difference:11.1e}{row.cosine:9.5f}{row.size:>16}"
            f"{row.batch:6}{row.threads:8}{timed}"
        )
    for note in notes:
        print(note)
    for check in bundle.manifest["checks"]["task"] if bundle is not None else ():
        if check["weighted_f1"] is not None:
            print(
                f"the bundle, {check['precision']} on {check['split']}: weighted F1 {check['weighted_f1']:.4f}, torch "
                f"{check['torch_weighted_f1']:.4f}, {check['labels_kept']:.2%} of {check['n_utterances']} labels kept"
            )
    print(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
