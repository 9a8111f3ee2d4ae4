"""README, documentation, examples and benchmarks import the runtime's public list, and little else."""

from __future__ import annotations

import ast
import dataclasses
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

import pytest

import mechm_runtime
from mechm_runtime import PipelineConfig, errors
from mechm_runtime.pipeline import PipelineOptions

BELOW_THE_PIPELINE = {
    "analysis": "the constants of decoding, so that pictures are sampled as they are in an analysis",
    "bundle": "the names and constants of single parts",
    "engines": "one graph by itself, timed without the pipeline around it",
    "fusion": "the fusion and its decision by themselves",
    "llm": "the Llama by itself",
    "media": "decoding in this process, to be compared with decoding in another one",
    "modalities": "the preprocessing of one encoder",
    "system": "onnxruntime by itself, with its usage reports switched off",
}
"""Folders from which benchmarks, and nobody else, may import more, because they measure that part alone."""

WITHIN_THE_PACKAGES = "docs/extending.md"
"""The page whose blocks are modules of the packages, which import from each other."""

FENCED = re.compile(r"^```python[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:^(?: {4}.*)?\n)+", re.MULTILINE)


def python_blocks(page: str) -> Iterator[str]:
    """Python code of a Markdown page: fenced as Python, or indented and importing something."""
    yield from FENCED.findall(page)
    for block in INDENTED.findall(page):
        code = textwrap.dedent(block)
        if re.search(r"^(from|import) ", code, re.MULTILINE):
            yield code


def programs(repository: Path) -> Iterator[tuple[str, ast.Module]]:
    for folder in ("examples", "benchmarks"):
        for path in sorted((repository / folder).glob("*.py")):
            yield path.relative_to(repository).as_posix(), ast.parse(path.read_text(encoding="utf-8"))
    for path in (repository / "README.md", *sorted((repository / "docs").rglob("*.md"))):
        if path == repository / WITHIN_THE_PACKAGES:
            continue
        for code in python_blocks(path.read_text(encoding="utf-8")):
            yield path.relative_to(repository).as_posix(), ast.parse(code)


def imported(code: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(code):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mechm_runtime":
            yield from ((str(node.module), name.name) for name in node.names)
        elif isinstance(node, ast.Import):
            yield from ((name.name, "") for name in node.names if name.name.startswith("mechm_runtime."))


def test_what_programs_use_is_in_the_public_list(repository: Path) -> None:
    public = set(mechm_runtime.__all__)
    used_folders = set()
    for where, code in programs(repository):
        for module, name in imported(code):
            if module == "mechm_runtime":
                assert name in public, f"{where} uses {name}, which is not public"
                continue
            assert name not in public, f"{where}: from mechm_runtime import {name}"
            folder = module.split(".")[1]
            assert where.startswith("benchmarks/"), f"{where} uses {module}.{name}, which is not public"
            assert folder in BELOW_THE_PIPELINE, f"{where} uses {module}.{name}, which is not public"
            used_folders.add(folder)
    assert used_folders == set(BELOW_THE_PIPELINE), "a folder is listed from which no benchmark imports"


def test_every_error_is_public() -> None:
    names = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert names <= set(mechm_runtime.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Pipelin'"):
        _ = mechm_runtime.Pipelin  # type: ignore[attr-defined]
    assert set(mechm_runtime.__all__) <= set(dir(mechm_runtime))


def test_options_are_the_fields_of_the_config() -> None:
    assert get_type_hints(PipelineOptions) == get_type_hints(PipelineConfig)
    assert {field.name for field in dataclasses.fields(PipelineConfig)} == PipelineOptions.__optional_keys__
