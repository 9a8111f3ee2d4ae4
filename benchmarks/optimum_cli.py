"""optimum-cli's export of an encoder, and its int8 for AVX512-VNNI: the rival of `encoders.py`. No benchmark by itself.

It runs in an environment of its own (`make optimum`), a command a graph. What it writes is read by the same onnxruntime
as ours. Whisper's encoder it exports for 30 s of sound at once, whatever was said.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

COMMAND = ("-W", "ignore", "-m", "optimum.commands.optimum_cli")
TASKS = {"whisper": "automatic-speech-recognition"}
"""By model_type, where the encoder alone is no task; `feature-extraction` for all others."""
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
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=offline)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        lines = [line for line in output if line.strip()]
    if process.returncode:
        raise OptimumError(lines[-1].strip()[:200] if lines else f"exit code {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss / 1e6
