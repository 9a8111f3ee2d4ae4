"""Measures building engines without a GPU: seconds and size by part and precision.

    python benchmarks/tensorrt_builds.py --bundle DIR [--part NAME ...] [--precision fp16 ...] [--sm 89]

Each part is converted like in `mechm export engines`, calibrated on the shipped conversations, and built once for one
compute capability with TensorRT-RTX. Seconds are wall-clock time of `build_engine` alone, one build at a time; the
conversion's time is a column of its own. Limit to expect: for the size, that of the weights, which an engine contains.
int8 is built for the parts that text passes through.

The preset `small` for compute capability 89, TensorRT-RTX 1.7.1.116, onnxruntime 1.32, two cores of an Intel Xeon;
engine in MB, and seconds to build:

    part            fp32          fp16          bf16          int8
    text         443.8  3.0    226.0  2.1    226.0  2.1    190.0  2.3
    audio         37.5  0.6     19.2  0.5     19.2  0.6
    scene         69.9  1.1     35.8  1.0     36.1  1.0
    detector       1.2  0.4      1.1  0.4      1.5  0.4
    expression     0.5  0.1      0.4  0.1      1.1  0.1
    fusion        12.5  0.7      8.5  0.7      8.5  0.7      8.5  0.8

The text encoder's int8 has its embeddings in fp32 and took 20 s to convert, its calibration above all.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from mechm_export.gate.check_set import shipped_check_set
from mechm_export.gate.fp32_reference import Fp32Reference
from mechm_export.precision.lower import lower_graph
from mechm_export.tensorrt.memory import estimate_memory
from mechm_export.tensorrt.shapes import shape_ranges
from mechm_runtime import VerificationError, open_bundle
from mechm_runtime.bundle.engine_file import EngineKey
from mechm_runtime.bundle.open import file_sha256
from mechm_runtime.engines.tensorrt.build import build_engine
from mechm_runtime.engines.tensorrt.library import load_library, system_name

PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@dataclass(frozen=True, slots=True)
class Row:
    """One engine."""

    part: str
    precision: str
    onnx_mb: float
    engine_mb: float
    memory_mb: float
    convert_s: float
    build_s: float


def main() -> None:
    """Build everything that was asked for and print a table and one JSON line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--bundle", type=Path, required=True)
    arguments.add_argument("--part", nargs="+", default=["text", "audio", "scene", "detector", "expression", "fusion"])
    arguments.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    arguments.add_argument("--sm", default="89")
    given = arguments.parse_args()
    library = load_library("tensorrt-rtx")
    bundle = open_bundle(given.bundle)
    calibrated = [part for part in given.part if part in ("text", "fusion")] if "int8" in given.precision else []
    reference = Fp32Reference(bundle, shipped_check_set(), calibrated) if calibrated else None
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for part in given.part:
            exact = bundle.path(bundle.parts[part].files["fp32"])
            shapes = shape_ranges(bundle, part)
            for precision in given.precision:
                started = time.perf_counter()
                source = exact
                if precision != "fp32":
                    source = Path(folder) / f"{part}.{precision}.onnx"
                    try:
                        feeds = reference.inputs(part) if precision == "int8" and reference is not None else []
                        lower_graph(exact, source, precision, feeds)
                    except VerificationError as error:
                        print(f"{part} {precision}: {error}")
                        continue
                converted = time.perf_counter()
                sha256 = file_sha256(source)
                key = EngineKey(library.name, library.version, (given.sm,), system_name(), precision, shapes, sha256)
                start = time.perf_counter()
                engine = build_engine(library, source, key)
                built = time.perf_counter()
                memory = estimate_memory(source, shapes).total
                sizes = (source.stat().st_size / 1e6, len(engine) / 1e6, memory / 1e6)
                rows.append(Row(part, precision, *sizes, converted - started, built - start))
                if source != exact:
                    source.unlink()
    print(f"{bundle.id}, {library.name} {library.version}, compute capability {given.sm}, {os.cpu_count()} cores")
    print(f"{'part':12}{'precision':>10}{'ONNX MB':>10}{'engine MB':>11}{'GPU MB':>9}{'convert s':>11}{'build s':>9}")
    for row in rows:
        print(
            f"{row.part:12}{row.precision:>10}{row.onnx_mb:10.1f}{row.engine_mb:11.1f}{row.memory_mb:9.0f}"
            f"{row.convert_s:11.2f}{row.build_s:9.2f}"
        )
    print(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
