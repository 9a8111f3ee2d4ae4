"""One matrix product on one execution provider, computed in a child process.

`onnxruntime.get_available_providers()` lists what was compiled in, not what runs: a provider whose libraries are
missing is replaced by the CPU with a line on stderr, and a broken driver can take the process down. So the question is
asked in a process of its own: `python -m mechm_runtime.environment.provider_probe NAME` builds a session, runs it and
prints one JSON object. It does not judge the answer; `environment.onnxruntime` does.

The graph is put together here byte by byte, because the `onnx` package is no part of a light install and a binary
file in the package would hide what is in it.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np

from mechm_runtime.system.arrays import Array, Float32Array
from mechm_runtime.system.telemetry import import_onnxruntime

N_ROWS, N_INNER, N_COLUMNS = 4, 64, 8
CPU = "CPUExecutionProvider"
NVIDIA = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """The measurements of one child process.

    providers: the session's own list, the one that was really set up first.
    max_difference: largest absolute difference from the exact product.
    setup_ms, run_ms: wall-clock milliseconds to build the session, and of one run after a first one.
    """

    providers: tuple[str, ...]
    max_difference: float
    setup_ms: float
    run_ms: float


# Protocol buffers' wire format: a field is a varint of (number << 3 | kind), then for kind 0 a varint, for kind 2 a
# length and that many bytes. Field numbers below are those of onnx.proto, which never change once published.


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _integer(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _data(number: int, value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(raw)) + raw


def _value_info(name: str, shape: tuple[int, ...]) -> bytes:
    """A ValueInfoProto: `name` as a float32 tensor of a fixed shape."""
    dims = b"".join(_data(1, _integer(1, length)) for length in shape)
    tensor_type = _integer(1, 1) + _data(2, dims)
    return _data(1, name) + _data(2, _data(1, tensor_type))


def weight() -> Float32Array:
    """The graph's constant factor: float32 (64, 8), whole numbers from -2 to 2.

    With inputs of the same kind every product and sum stays below 256, so that fp16, bf16 and TF32 hold them exactly:
    a difference is a wrong answer, not a precision.
    """
    cells = np.arange(N_INNER * N_COLUMNS).reshape(N_INNER, N_COLUMNS)
    return ((cells**2 * 7 + cells * 3) % 31 % 5 - 2).astype(np.float32)


def probe_input() -> Float32Array:
    """The input that the probe feeds: float32 (4, 64), whole numbers from -1 to 1."""
    cells = np.arange(N_ROWS * N_INNER).reshape(N_ROWS, N_INNER)
    return ((cells**2 * 5 + cells * 11) % 37 % 3 - 1).astype(np.float32)


def probe_model() -> bytes:
    """An ONNX model, opset 17: `y = x @ weight` with x float32 (4, 64) and y float32 (4, 8).

    One MatMul with a constant factor and fixed shapes is what every provider can take, the ones for phones included.
    """
    node = _data(1, "x") + _data(1, "weight") + _data(2, "y") + _data(4, "MatMul")
    initializer = _integer(1, N_INNER) + _integer(1, N_COLUMNS) + _integer(2, 1)
    initializer += _data(8, "weight") + _data(9, weight().astype("<f4").tobytes())
    graph = _data(1, node) + _data(2, "probe") + _data(5, initializer)
    graph += _data(11, _value_info("x", (N_ROWS, N_INNER))) + _data(12, _value_info("y", (N_ROWS, N_COLUMNS)))
    return _integer(1, 8) + _data(7, graph) + _data(8, _data(1, "") + _integer(2, 17))


def probe(provider: str) -> ProbeAnswer:
    """Run the product on `provider`, without the CPU standing in for it.

    Raises: whatever onnxruntime raises; the caller reads it from the child's stderr.
    """
    onnxruntime = import_onnxruntime()

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider != CPU:
        # Else a provider that took no operator at all would look as if it worked: the CPU gives the same numbers.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if provider in NVIDIA and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # finds CUDA and cuDNN where pip put them; elsewhere the loader's own search holds
    started = time.perf_counter()
    session = onnxruntime.InferenceSession(probe_model(), options, providers=[provider], enable_fallback=0)
    ready = time.perf_counter()
    feed = {"x": probe_input()}
    session.run(None, feed)
    warm = time.perf_counter()
    (y,) = session.run(None, feed)
    done = time.perf_counter()
    result: Array = np.asarray(y)
    exact = probe_input() @ weight()
    difference = float(np.abs(result - exact).max()) if result.shape == exact.shape else float("inf")
    return ProbeAnswer(
        providers=tuple(session.get_providers()),
        max_difference=difference,
        setup_ms=(ready - started) * 1000,
        run_ms=(done - warm) * 1000,
    )


def main() -> None:
    """Print what `probe` found for the provider named on the command line, as one JSON object."""
    sys.stdout.write(json.dumps(asdict(probe(sys.argv[1]))) + "\n")


if __name__ == "__main__":
    main()
