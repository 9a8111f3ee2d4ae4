"""The machine that was measured: processor, cores, memory and versions, which every published time needs."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mechm_runtime.system.cores import usable_cores

PACKAGES = ("mechm", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "torch", "transformers", "peft", "av")
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine as results describe it.

    cpu: name of the processor. cores: usable by this process. memory_gb: GB of the machine; None if unknown.
    versions: by package, of the installed ones of `PACKAGES`.
    """

    cpu: str
    cores: float
    memory_gb: float | None
    system: str
    python: str
    versions: dict[str, str]


def describe_machine() -> Machine:
    """Describe this machine."""
    return Machine(
        cpu=_cpu_name(),
        cores=usable_cores(),
        memory_gb=_memory_gb(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions=dict(_versions(PACKAGES)),
    )


def resident_bytes() -> int | None:
    """Memory of this process in RAM now; None on systems that do not report it (Linux does)."""
    return _status_bytes("VmRSS")


def peak_resident_bytes() -> int | None:
    """Peak memory of this process in RAM since it started; None as in `resident_bytes`.

    Not from `resource.getrusage`, where a child process starts with its parent's peak.
    """
    return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int | None:
    found = re.search(rf"^{name}:\s+(\d+) kB", _read(PROC / "self" / "status"), re.M)
    return None if found is None else int(found[1]) << 10


def _cpu_name() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _read(PROC / "cpuinfo"), re.M)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _versions(names: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in names:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
