"""The machine as this process may use it: processor, memory and GPUs, as far as the system tells."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mechm_runtime.system.cores import usable_cores

CPU_FEATURES: Mapping[str, str] = {
    "avx2": "AVX2",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "amx_tile": "AMX",
    "amx_int8": "AMX-INT8",
    "amx_bf16": "AMX-BF16",
    "asimd": "NEON",
    "asimddp": "DotProd",
    "i8mm": "I8MM",
    "sve": "SVE",
    "FEAT_DotProd": "DotProd",
    "FEAT_I8MM": "I8MM",
}
"""Flag as the kernel names it -> name in print. VNNI, AMX, DotProd and I8MM decide what int8 gains over fp32."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine as this process may use it.

    cpu_features: those of `CPU_FEATURES` that the CPU has; empty where the system does not tell.
    n_cores: logical cores; n_usable_cores: what affinity and the container's quota leave of them.
    memory_bytes: what the machine or the container has, None where the system does not tell.
    gpus: one line for each NVIDIA GPU: name, driver, memory, compute capability.
    """

    python: str
    system: str
    architecture: str
    cpu: str
    cpu_features: tuple[str, ...]
    n_cores: int
    n_usable_cores: float
    memory_bytes: int | None
    gpus: tuple[str, ...]


def examine_machine() -> Machine:
    """Python, system, CPU, memory and GPUs, as far as the system tells without extra packages."""
    n_cores = os.cpu_count() or 1
    cpu, features = _cpu()
    return Machine(
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        system=_system(),
        architecture=platform.machine(),
        cpu=cpu,
        cpu_features=features,
        n_cores=n_cores,
        n_usable_cores=usable_cores(),
        memory_bytes=_memory_bytes(),
        gpus=_gpus(),
    )


def _system() -> str:
    if platform.system() == "Linux":
        try:
            name = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
        except OSError:
            name = "Linux"
        return f"{name}, kernel {platform.release()}"
    return platform.platform(terse=True)


def _cpu() -> tuple[str, tuple[str, ...]]:
    """The CPU's name and those of `CPU_FEATURES` that it has, in the order of that table."""
    flags: set[str] = set()
    name = platform.processor() or platform.machine()
    if platform.system() == "Linux":
        entries = [line.partition(":") for line in _read(Path("/proc/cpuinfo")).splitlines()]
        table = {key.strip().lower(): value.strip() for key, _, value in reversed(entries)}
        name = table.get("model name", name)
        flags = set(table.get("flags", table.get("features", "")).split())
    elif platform.system() == "Darwin":
        name = _output(["sysctl", "-n", "machdep.cpu.brand_string"]).strip() or name
        for line in _output(["sysctl", "hw.optional.arm"]).splitlines():
            key, _, value = line.partition(":")
            if value.strip() == "1":
                flags.add(key.rpartition(".")[2])
        flags |= {flag.lower() for flag in _output(["sysctl", "-n", "machdep.cpu.leaf7_features"]).split()}
    return name, tuple(dict.fromkeys(label for flag, label in CPU_FEATURES.items() if flag in flags))


def _memory_bytes() -> int | None:
    total = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _read(Path("/sys/fs/cgroup/memory.max")).strip()
    if limit.isdigit():
        total = min(total, int(limit)) if total is not None else int(limit)
    return total


def _gpus() -> tuple[str, ...]:
    query = "name,driver_version,memory.total,compute_cap"
    lines = _output(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]).splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(command: Sequence[str]) -> str:
    """The output of a system tool, or an empty string where it is absent, fails or hangs."""
    tool = shutil.which(command[0])
    if tool is None:
        return ""
    try:
        done = subprocess.run([tool, *command[1:]], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603 - fixed arguments
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
