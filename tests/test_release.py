"""`make release` refuses what is not ready, says why, and knows a wheel that is wrong."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

SCRIPT = Path(__file__).parent.parent / ".ci" / "release.py"


@pytest.fixture(scope="module")
def release() -> Any:
    spec = importlib.util.spec_from_file_location("release", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small repository whose version 1.2.3 is ready."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mechm"\nversion = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [1.2.3] - 2026-01-02\n")
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        git(tmp_path, *arguments)
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=Ana", "-c", "user.email=ana@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True)


def test_a_ready_tree_has_no_problems(release: Any, tree: Path) -> None:
    assert release.why_not_ready(tree, "1.2.3") == []


@pytest.mark.parametrize("version", ["", "1.2", "v1.2.3", "1.2.3rc1"])
def test_a_version_has_three_numbers(version: str, release: Any, tree: Path) -> None:
    (problem,) = release.why_not_ready(tree, version)
    assert "make release VERSION=0.2.0" in problem


def test_every_reason_is_given_at_once(release: Any, tree: Path) -> None:
    git(tree, "tag", "v2.0.0")
    (tree / "new.txt").write_text("new")
    problems = release.why_not_ready(tree, "2.0.0")
    for part in ("has version 1.2.3", "no heading `## [2.0.0]", "new.txt", "tag v2.0.0 exists"):
        assert sum(part in problem for problem in problems) == 1, part
    assert len(problems) == 4


def test_the_command_refuses_before_it_does_anything(repository: Path) -> None:
    done = subprocess.run([sys.executable, SCRIPT, "99.0.0"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pyproject.toml has version" in done.stderr


def test_what_is_built_can_be_shipped_and_a_wrong_wheel_cannot(release: Any, repository: Path, tmp_path: Path) -> None:
    (wheel,) = WheelBuilder(str(repository)).build(directory=str(tmp_path), versions=["standard"])
    (sdist,) = SdistBuilder(str(repository)).build(directory=str(tmp_path), versions=["standard"])
    version = Path(wheel).name.split("-")[1]
    assert release.why_not_shippable(repository, version, Path(wheel), Path(sdist)) == []
    broken = tmp_path / "broken.whl"
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(broken, "w") as new:
        for name in old.namelist():
            if name != "mechm_runtime/bundle/bundle.schema.json":
                new.writestr(name, old.read(name))
        new.writestr("tests/__pycache__/a.pyc", b"")
        new.writestr("mechm/pretrained/small/model.safetensors", b"")
    problems = release.why_not_shippable(repository, "9.9.9", broken, Path(sdist))
    for part in (
        "not mechm 9.9.9",
        "lacks mechm_runtime/bundle/bundle.schema.json",
        "carries tests",
        "carries mechm/pretrained",
        "a.pyc must not",
    ):
        assert sum(part in problem for problem in problems) == 1, part
