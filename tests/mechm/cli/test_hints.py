"""Hints are no dead ends: every command that one names exists with its options, and works where it is shown."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import click
import pytest

from mechm.cli import COMMANDS, cli

LIGHT = (
    "runtime/mechm_runtime",
    *(
        f"mechm/cli/{name}.py"
        for name in ("__init__", "analyze", "bench", "bundle_fetch", "doctor", "evaluate", "serve")
    ),
    "mechm/cli/options",
    "mechm/bench",
    "mechm/evaluation",
    "export/mechm_export/deployment",
    "export/mechm_export/cli/deployment.py",
)
"""Sources whose errors a light install can show."""
NEED_EXTRAS = ("ask", "export", "import", "merge", "train", "weights")
"""Commands that need torch, so that a hint has to name the extra."""
PROSE = ("is", "also")
"""Words after `mechm` that make a sentence about the package."""
HEAVY = ("torch", "transformers", "peft", "onnx", "vllm", "accelerate", "h5py", "gguf", "huggingface_hub", "onnxscript")


def sources(repository: Path, roots: tuple[str, ...]) -> Iterator[Path]:
    for root in roots:
        path = repository / root
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


def text_of(node: ast.AST) -> str | None:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(one.value) if isinstance(one, ast.Constant) else "X" for one in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Strings with their lines: no docstrings, an f-string as one with X for what is filled in."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            skipped.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            skipped.update(id(one) for one in node.values)
    for node in ast.walk(tree):
        if id(node) not in skipped and (text := text_of(node)) is not None:
            yield getattr(node, "lineno", 0), text


def hints(repository: Path) -> dict[str, str]:
    """Place -> every string that a light install's errors, hints and reports can hold."""
    return {
        f"{path.relative_to(repository)}:{line}": text
        for path in sources(repository, LIGHT)
        for line, text in texts(ast.parse(path.read_text(encoding="utf-8")))
    }


def commands(text: str) -> Iterator[list[str]]:
    """The words of every `mechm ...` in a text, as far as the sentence goes on."""
    for found in re.finditer(r"(?<![\w/.'])mechm ([a-z][^;,()`\n]*)", text):
        words = re.sub(r"[.:](?:\s|$).*", "", found[1]).split()
        if words and words[0] not in PROSE:
            yield words


def resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that words name, and the words after it."""
    command: click.Command = cli
    path = list(words)
    while path and isinstance(command, click.Group):
        below = command.get_command(click.Context(command), path[0])
        if below is None:
            return command, path
        command = below
        path.pop(0)
    return command, path


def test_the_hints_are_found(repository: Path) -> None:
    said = " ".join(hints(repository).values())
    for command in ("mechm bundle fetch", "mechm export llm", "mechm doctor", "mechm bundle keygen", "mechm serve llm"):
        assert command in said


def test_every_command_in_a_hint_exists_with_its_options(repository: Path) -> None:
    wrong = []
    for place, text in hints(repository).items():
        for words in commands(text):
            command, rest = resolve(words)
            options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
            unknown = [one for one in rest if re.match("--[a-z]", one) and one not in options]
            if words[0] not in COMMANDS or unknown:
                wrong.append((place, words, unknown))
    assert wrong == []


def test_a_hint_with_a_command_that_needs_torch_names_the_extra(repository: Path) -> None:
    """Of `hint=` and module constants; sentences about who wrote a file are no hints."""
    wrong = []
    for path in sources(repository, LIGHT):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        given: list[ast.AST] = [
            one.value for one in ast.walk(tree) if isinstance(one, ast.keyword) and one.arg == "hint"
        ]
        given += [one.value for one in tree.body if isinstance(one, ast.Assign) and text_of(one.value)]
        for line, text in (found for one in given for found in texts(one)):
            if any(words[0] in NEED_EXTRAS for words in commands(text)) and "mechm[" not in text:
                wrong.append((f"{path.relative_to(repository)}:{line}", text))
    assert wrong == []


@pytest.mark.parametrize("module", ["mechm_runtime.pipeline", "mechm.cli"])
def test_without_a_bundle_a_light_install_is_told_to_fetch_one(
    fresh_python: Callable[..., CompletedProcess[str]], tmp_path: Path, module: str
) -> None:
    code = {
        "mechm.cli": "from mechm.cli import main; main(['bundle', 'verify'])",
        "mechm_runtime.pipeline": "from mechm_runtime import Pipeline\n"
        "from mechm_runtime.errors import BundleError\n"
        "try: Pipeline.from_bundle()\nexcept BundleError as error: raise SystemExit(f'hint: {error.hint}')",
    }[module]
    environment = {"MECHM_CACHE": str(tmp_path), "MECHM_BUNDLE": ""}
    light = fresh_python(code, without=HEAVY, **environment)
    assert light.stderr.splitlines()[-1] == "hint: mechm bundle fetch small"
    whole = fresh_python(code, **environment)
    assert "mechm bundle fetch small; or from its weights: mechm export bundle" in whole.stderr


def test_the_doctor_names_what_works_in_a_light_install(
    fresh_python: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    code = (
        "from mechm_runtime.doctor import examine_files\nfor one in examine_files(): print(one.name, '|', one.command)"
    )
    done = fresh_python(code, without=HEAVY, MECHM_CACHE=str(tmp_path), MECHM_BUNDLE="")
    assert done.returncode == 0, done.stderr
    rows = dict(line.split(" | ") for line in done.stdout.splitlines())
    assert rows["default bundle"] == "mechm bundle fetch small"
    assert "mechm[train]" in rows["base weights"]
    named = tmp_path / "my bundle"
    done = fresh_python(code, without=HEAVY, MECHM_CACHE=str(tmp_path), MECHM_BUNDLE=str(named))
    assert f"mechm bundle fetch small --out {shlex.quote(str(named))}" in done.stdout
