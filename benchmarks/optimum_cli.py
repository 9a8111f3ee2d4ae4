"""optimum-cli's export of an encoder and its int8 for AVX512-VNNI, the rival in `encoders.py`; no benchmark by itself.

It runs in an environment of its own (`make optimum`), one command per graph. Its graphs run on the same onnxruntime as
ours. Whisper's encoder is exported for 30 s of audio only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

COMMAND = ("-W", "ignore", "-m", "optimum.commands.optimum_cli")
TASKS = {"whisper": "automatic-speech-recognition"}
"""Task by model_type if the encoder alone has none; `feature-extraction` for all others."""
MEASURED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""
ENCODER = ("encoder_model.onnx", "model.onnx")


@dataclass(frozen=True, slots=True)
class RivalGraph:
    """A graph written by optimum-cli. peak_gb: peak memory of its process."""

    precision: str
    path: Path
    export_s: float
    peak_gb: float

    @property
    def size_bytes(self) -> int:
        """Size of the graph and its external weights."""
        return sum(file.stat().st_size for file in self.path.parent.glob(f"{self.path.name}*"))


class OptimumError(Exception):
    """The command failed; the message is its last line."""


def export_rivals(python: Path, model: Path, model_type: str, folder: Path) -> list[RivalGraph]:
    """Export an encoder in fp32 and int8.

    python: of the environment with optimum-onnx. model: a Hugging Face folder. model_type: of its config.
    Raises: OptimumError.
    """
    task = TASKS.get(model_type, "feature-extraction")
    exported, alone, quantized = folder / "exported", folder / "fp32", folder / "int8"
    export_s, peak_gb = _run(python, "export", "onnx", "--model", model, "--task", task, exported)
    alone.mkdir()  # a decoder beside it would be quantized too
    source = next(path for name in ENCODER if (path := exported / name).exists())
    for file in (exported / "config.json", *exported.glob(f"{source.name}*")):
        shutil.move(file, alone / file.name)
    graphs = [RivalGraph("fp32", alone / source.name, export_s, peak_gb)]
    shutil.rmtree(exported)
    export_s, peak_gb = _run(
        python, "onnxruntime", "quantize", "--onnx_model", alone, "--avx512_vnni", "--per_channel", "-o", quantized
    )
    (path,) = quantized.glob("*.onnx")
    return [*graphs, RivalGraph("int8", path, export_s, peak_gb)]


def _run(python: Path, *arguments: str | Path) -> tuple[float, float]:
    """Run a command; returns its seconds and its peak memory in GB."""
    start = time.perf_counter()
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONPATH": ""}
    command = [str(python), *COMMAND, *map(str, arguments)]
    with tempfile.NamedTemporaryFile("w+") as peak:
        # A small process in between, since a child's peak starts with the memory of the process that forked it.
        between = [sys.executable, "-c", MEASURED, peak.name, *command]
        done = subprocess.run(between, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=offline)
        peak_kb = int(peak.read() or 0)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        raise OptimumError(lines[-1].strip()[:200] if lines else f"exit code {done.returncode}")
    return time.perf_counter() - start, peak_kb / 1e6
