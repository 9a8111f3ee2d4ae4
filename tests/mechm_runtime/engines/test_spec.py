"""The table of engines: every row has its name, its loader and its extra, and is offered by the commands."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner

from mechm.cli import cli
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.load import find_loader, load_engine
from mechm_runtime.engines.spec import DEFAULT_ENGINE, ENGINES, EngineName


def test_names_and_rows_are_the_same() -> None:
    assert list(ENGINES) == list(get_args(EngineName))
    assert EngineConfig().engine == DEFAULT_ENGINE == next(iter(ENGINES))


@pytest.mark.parametrize("name", ENGINES)
def test_every_row_names_what_loads_it_and_the_extra_that_brings_it(name: EngineName, repository: Path) -> None:
    assert callable(find_loader(ENGINES[name]))
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert ENGINES[name].extra in project["optional-dependencies"]


def test_the_table_imports_no_engine(fresh_python: Callable[..., Any]) -> None:
    done = fresh_python(
        "import sys, mechm_runtime.engines.spec\n"
        "engines = ('mechm_runtime.engines.', 'onnxruntime', 'openvino')\n"
        "print([name for name in sys.modules if name.startswith(engines)])"
    )
    assert done.stdout.strip() == "['mechm_runtime.engines.spec']", done.stderr


def test_an_engine_that_is_built_loads_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tensorrt runs no ONNX file"):
        load_engine(tmp_path / "a.onnx", EngineConfig(engine="tensorrt"))


@pytest.mark.parametrize("command", ["analyze", "evaluate", "bench"])
def test_the_commands_offer_every_engine(command: str) -> None:
    shown = CliRunner().invoke(cli, [command, "--help"], env={"COLUMNS": "400"}).output
    assert all(f"{name}: " in shown for name in ENGINES)
