"""The cores that are left: by affinity, and by a container's quota in either form."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.system.cores import usable_cores


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 cores, all of them open to this process."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(64)), raising=False)


def quota(folder: Path, version: int, cores: float | None) -> Path:
    """A folder with the limits of a container, as Linux shows it one."""
    if version == 2:
        (folder / "cpu.max").write_text("max 100000\n" if cores is None else f"{round(cores * 100_000)} 100000\n")
    else:
        (folder / "cpu").mkdir()
        (folder / "cpu" / "cpu.cfs_quota_us").write_text(f"{-1 if cores is None else round(cores * 50_000)}\n")
        (folder / "cpu" / "cpu.cfs_period_us").write_text("50000\n")
    return folder


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("cores", [0.5, 1.0, 1.5, 12.0])
def test_a_quota_lowers_the_cores(version: int, cores: float, tmp_path: Path) -> None:
    assert usable_cores(quota(tmp_path, version, cores)) == cores


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize("version", [1, 2])
def test_no_quota_leaves_all(version: int, tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 64
    assert usable_cores(quota(tmp_path, version, None)) == 64
    assert usable_cores(quota(tmp_path, 2, 100.0)) == 64, "a quota adds no cores"


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize("content", ["", "0 0", "0 100000", "-5 100000", "x y", "100000", "² 100000", "\xff"])
def test_what_is_no_quota_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(content, encoding="latin-1", errors="replace")
    assert usable_cores(tmp_path) == 64


def test_this_machine_has_some() -> None:
    assert 0 < usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(("cores", "threads"), [(0.3, 1), (1.0, 1), (1.9, 1), (2.0, 2), (3.5, 3), (4.0, 4), (64.0, 4)])
def test_engines_take_a_thread_a_whole_core_up_to_four(
    cores: float, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mechm_runtime.engines.base.usable_cores", lambda: cores)
    assert EngineConfig().threads == threads
    assert EngineConfig(n_threads=7).threads == 7
