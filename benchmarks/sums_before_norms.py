"""Measures the cost on a CPU of onnxruntime's fusion of a sum with the layer normalization that follows it.

    python benchmarks/sums_before_norms.py --bundle DIR

onnxruntime fuses them in every graph that it loads (SkipLayerNormFusion), but the fused operator computes one number at
a time, while a separate normalization uses vector instructions. Text and audio of the bundle's default precision are
run as onnxruntime would load them and as the runtime does (`onnxruntime_engine.DISABLED_OPTIMIZERS`), in turns,
with one thread, on inputs of usual sizes. Limit to expect: two normalizations per layer are a hundredth of a
transformer's arithmetic, so there should be no difference. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from second_thread import inputs

from mechm_runtime import open_bundle
from mechm_runtime.engines.onnxruntime_engine import DISABLED_OPTIMIZERS
from mechm_runtime.engines.spec import CPU
from mechm_runtime.system.telemetry import import_onnxruntime

PARTS = ("text", "audio")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=None, help="default: the one that make demo built")
    parser.add_argument("--repeats", type=int, default=30)
    given = parser.parse_args()
    bundle = open_bundle(given.bundle, check_hashes=False)
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    rows = []
    for name, size, feeds in inputs(bundle):
        if name not in PARTS:
            continue
        part = bundle.parts[name]
        path = str(bundle.path(part.files[part.default]))
        ways: dict[str, Any] = {
            way: onnxruntime.InferenceSession(path, options, providers=[CPU], disabled_optimizers=left_out)
            for way, left_out in (("joined", None), ("apart", DISABLED_OPTIMIZERS))
        }
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(given.repeats):
            for way, session in ways.items():
                began = time.perf_counter()
                session.run(None, feeds)
                taken[way].append(1000 * (time.perf_counter() - began))
        joined, apart = (float(np.median(taken[way])) for way in ("joined", "apart"))
        rows.append({"part": name, "size": size, "precision": part.default, "joined_ms": joined, "apart_ms": apart})
    print(f"onnxruntime {version('onnxruntime')}, {platform.processor() or platform.machine()}; {bundle.id}")
    print(f"{'part':12}{'size':>12}{'':>6}{'fused ms':>12}{'separate ms':>13}")
    for row in rows:
        print(f"{row['part']:12}{row['size']:>12}{row['precision']:>6}{row['joined_ms']:12.2f}{row['apart_ms']:13.2f}")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
