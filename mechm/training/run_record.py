"""Record of a training run for the card: versions, machine, time, memory and numbers of parameters."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from mechm.model.build import CARD_FILE
from mechm_runtime.errors import WeightsError
from mechm_runtime.system.atomic_write import write_atomically

PACKAGES = ("mechm", "torch", "transformers", "peft", "accelerate", "numpy")


def run_record(model: nn.Module, accelerator: Accelerator, batches_per_step: int, seconds: float) -> dict[str, Any]:
    """Return the record as JSON values. Peak memory is this process's, and on a GPU also torch's allocated peak.

    seconds: training time so far, over all resumptions.
    """
    device = accelerator.device
    record = {
        "seconds": round(seconds, 1),
        "batches_a_step": batches_per_step,
        "parameters": {
            "total": sum(p.numel() for p in model.parameters()),
            "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        },
        "machine": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
            "processes": accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
        },
        "versions": {name: version(name) for name in PACKAGES},
        "peak_memory_mb": peak_memory_mb(),
    }
    if device.type == "cuda":
        record["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
    return record


def update_card(out: Path, record: dict[str, Any]) -> None:
    """Update the record in the card of the weights in `out`, if there is one.

    Raises: WeightsError: the card cannot be written; the old one is kept.
    """
    card = out / CARD_FILE
    if not card.is_file():
        return
    content = json.loads(card.read_text(encoding="utf-8")) | {"run": record}
    try:
        write_atomically(card, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise WeightsError(f"cannot write {card}: {error.strerror or error}", hint="free disk space") from error


def cpu_name() -> str:
    """Return the processor's model name, as precisely as the system knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_memory_mb() -> int | None:
    """Return this process's peak resident memory in MiB; None where the system does not count it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))  # bytes on macOS, kilobytes elsewhere
