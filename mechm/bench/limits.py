"""Measures the machine's limits: fp32 and int8 operations per second, and bytes per second from memory.

Measured in a process of its own, since the thread count of numpy's BLAS is fixed when it is loaded:

    python -m mechm.bench.limits THREADS

It needs onnx to write the graphs that onnxruntime multiplies with (`pip install 'mechm[bench]'`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from mechm_runtime.errors import MechmError, MissingExtraError
from mechm_runtime.system.telemetry import import_onnxruntime

GEMM_SIDE = 1536
"""Rows and columns of the matrices: large enough for a processor's full speed, 28 MB in fp32."""
MEMORY_BYTES = 256 << 20
"""Of each array that is read or copied: larger than the caches of a server processor."""
MEASURED_S = 1.0
"""Seconds that each operation is repeated for."""
N_PROCESSES = 2
"""Run one after the other; the better result counts, since other programs only make a machine slower."""
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Highest speeds that were measured with `n_threads`.

    fp32_gflops: the better of numpy's BLAS and onnxruntime's MatMul, in billions of operations per second. int8_gops:
    onnxruntime's MatMulInteger, uint8 by int8, as in its int8 graphs. A multiplication and an addition count as two.
    memory_gbs: GB/s, the better of reading two arrays (a dot product) and copying one (counted as read and written).
    """

    n_threads: int
    fp32_gflops: float
    int8_gops: float
    memory_gbs: float


def measure_limits(n_threads: int) -> Limits:
    """Measure in fresh processes.

    Raises: MissingExtraError: without onnx. MechmError: the process failed.
    """
    try:
        import onnx  # noqa: F401 (used in the process; here only its absence counts)
    except ImportError as error:
        raise MissingExtraError("onnx", extra="bench") from error
    measured = [_measured(n_threads) for _ in range(N_PROCESSES)]
    return Limits(
        n_threads,
        max(one.fp32_gflops for one in measured),
        max(one.int8_gops for one in measured),
        max(one.memory_gbs for one in measured),
    )


def _measured(n_threads: int) -> Limits:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(n_threads))
    done = subprocess.run(  # noqa: S603 (our own interpreter and arguments, no shell)
        [sys.executable, "-m", "mechm.bench.limits", str(n_threads)],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        env={**os.environ, **threads},
    )
    if done.returncode != 0:
        raise MechmError(f"the machine's limits could not be measured: {done.stderr.strip()[-300:]}")
    return Limits(**json.loads(done.stdout.splitlines()[-1]))


def _measure(n_threads: int) -> Limits:
    import numpy as np

    random = np.random.default_rng(0)
    a = random.normal(size=(GEMM_SIDE, GEMM_SIDE)).astype(np.float32)
    operations = 2 * GEMM_SIDE**3
    fp32 = (_best_s(lambda: a @ a), _best_s(_onnxruntime_product(a, n_threads)))
    int8 = _best_s(_onnxruntime_product((a * 20).clip(0, 255).astype(np.uint8), n_threads))
    read = np.ones(MEMORY_BYTES // 4, np.float32)
    other, target = np.ones_like(read), np.empty_like(read)
    parts = [slice(i * len(read) // n_threads, (i + 1) * len(read) // n_threads) for i in range(n_threads)]
    with ThreadPoolExecutor(n_threads) as pool:
        dot_s = _best_s(lambda: list(pool.map(lambda part: float(read[part] @ other[part]), parts)))
        copy_s = _best_s(lambda: list(pool.map(lambda part: np.copyto(target[part], read[part]), parts)))
    return Limits(
        n_threads,
        round(operations / min(fp32) / 1e9, 1),
        round(operations / int8 / 1e9, 1),
        round(2 * MEMORY_BYTES / min(dot_s, copy_s) / 1e9, 1),
    )


def _onnxruntime_product(a: Any, n_threads: int) -> Callable[[], object]:
    """A product of `a` with a constant matrix, as in graphs; int8 if `a` is uint8."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    onnxruntime = import_onnxruntime()
    is_integer = a.dtype == np.uint8
    constant = np.full(a.shape, 3, np.int8) if is_integer else a
    kinds = (TensorProto.UINT8, TensorProto.INT32) if is_integer else (TensorProto.FLOAT, TensorProto.FLOAT)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger" if is_integer else "MatMul", ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", kinds[0], a.shape)],
        [helper.make_tensor_value_info("c", kinds[1], a.shape)],
        [numpy_helper.from_array(constant, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": a})


def _best_s(work: Callable[[], object]) -> float:
    """Seconds of the fastest run within `MEASURED_S`, since a limit is the best that can be reached."""
    work()
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < MEASURED_S:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(_measure(int(sys.argv[1])))) + "\n")
