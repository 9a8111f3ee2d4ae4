"""optimum-cli's export of an encoder, and its int8 for AVX512-VNNI: the rival of `encoders.py`. No benchmark by itself.

It runs in an environment of its own (`make optimum`), a command a graph. What it writes is read by the same onnxruntime
as ours. Whisper's encoder it exports for 30 s of sound at once, whatever was said.
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
"""By model_type, where the encoder alone is no task; `feature-extraction` for all others."""
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
    """A graph that optimum-cli wrote. peak_gb: memory of the process that did."""

    precision: str
    path: Path
    export_s: float
    peak_gb: float

    @property
    def size_bytes(self) -> int:
        """Of the graph and the weights beside it."""
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
    """Run a command: its seconds, and the most memory it had, in GB."""
    start = time.perf_counter()
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONPATH": ""}
    command = [str(python), *COMMAND, *map(str, arguments)]
    with tempfile.NamedTemporaryFile("w+") as peak:
        # Between the two stands a small process: a child's peak begins with the memory of the process that forked it.
        between = [sys.executable, "-c", MEASURED, peak.name, *command]
        done = subprocess.run(between, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=offline)
        peak_kb = int(peak.read() or 0)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        raise OptimumError(lines[-1].strip()[:200] if lines else f"exit code {done.returncode}")
    return time.perf_counter() - start, peak_kb / 1e6
