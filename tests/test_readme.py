"""The README's promises: its Python example runs, its commands exist with the options it shows, its files are there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from mechm.cli import cli


def blocks(repository: Path) -> list[str]:
    """The indented blocks of the README, unindented."""
    found = re.findall(r"(?:^    .*\n|^\n(?=    ))+", (repository / "README.md").read_text(encoding="utf-8"), re.M)
    return [re.sub(r"^    ", "", block, flags=re.M).strip("\n") for block in found]


def commands(repository: Path) -> list[list[str]]:
    """Every `mechm …` line of the README, split as a shell would, comments left out."""
    lines = [line for block in blocks(repository) for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("mechm ")]


def test_the_python_example_runs(repository: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = [block for block in blocks(repository) if block.startswith("from mechm_runtime import")]
    monkeypatch.setenv("MECHM_BUNDLE", str(tiny_bundle))
    done = subprocess.run([sys.executable, "-W", "error", "-c", example], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[:2]] == ["Ana", "Ben"]


def test_the_commands_take_the_options_that_are_shown(repository: Path) -> None:
    shown = commands(repository)
    assert len(shown) > 10
    for words in shown:
        command: click.Command = cli
        arguments = words[1:]
        while isinstance(command, click.Group):
            found = command.get_command(click.Context(command), arguments.pop(0))
            assert found is not None, words
            command = found
        options = {name for parameter in command.params for name in parameter.opts}
        unknown = {word for word in arguments if word.startswith("--")} - options
        assert not unknown, words


def test_the_numbers_are_filled_in(repository: Path) -> None:
    assert "" not in (repository / "README.md").read_text(encoding="utf-8")


def test_the_file_map_names_what_is_there(repository: Path) -> None:
    (listing,) = [block for block in blocks(repository) if block.startswith("mechm/  ")]
    for line in listing.splitlines():
        assert (repository / line.split()[0]).is_dir(), line
