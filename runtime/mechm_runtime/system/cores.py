"""Number of cores that this process may use: CPU affinity and the container's quota, which `os.cpu_count` ignores.

It only reads; no thread counts are set here.
"""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""The folder in which Linux shows a container its own limits."""


def usable_cores(cgroup: Path = CGROUP) -> float:
    """Cores that this process may use: above 0, and a fraction where the quota is one.

    cgroup: the folder with the container's limits, in the form of version 2 (`cpu.max`) or 1 (`cpu/cpu.cfs_quota_us`).
    """
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    if not quota:
        quota, period = (_read(cgroup / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    # Without a limit the quota is "max" (version 2) or -1 (version 1).
    if quota.isdecimal() and period.isdecimal() and int(quota) > 0 and int(period) > 0:
        cores = min(cores, int(quota) / int(period))
    return cores


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
