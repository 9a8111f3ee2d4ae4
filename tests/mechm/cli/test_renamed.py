"""Names that changed: the old ones still work, warn on standard error, and are in no help."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from mechm.cli import cli
from mechm.cli.options.renamed import RenamedOptions


@click.command(cls=RenamedOptions, renamed={"--old": "--new"})
@click.option("--new", multiple=True)
@click.argument("words", nargs=-1)
def command(new: tuple[str, ...], words: tuple[str, ...]) -> None:
    click.echo(f"{new} {words}")


@pytest.mark.parametrize(
    ("arguments", "printed", "n_warnings"),
    [
        (["--new", "1"], "('1',) ()", 0),
        (["--old", "1", "--old=2"], "('1', '2') ()", 2),
        (["--new", "1", "--", "--old"], "('1',) ('--old',)", 0),
    ],
)
def test_the_old_name_of_an_option_is_read_and_named(arguments: list[str], printed: str, n_warnings: int) -> None:
    ended = CliRunner().invoke(command, arguments)
    assert ended.stdout.strip() == printed
    assert ended.stderr.count("warning: --old is now called --new") == n_warnings


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        (["weights", "fetch"], "--llm", "--with-llm"),
        (["train", "fusion"], "--report", "--score"),
        (["train", "llm"], "--report", "--score"),
        (["train", "combination"], "--report", "--score"),
        (["evaluate"], "--submission", "--predictions"),
        (["export", "bundle"], "--target", "--engine"),
        (["export", "bundle"], "--llm", "--adapter"),
        (["export", "engines"], "--target", "--engine"),
        (["export", "check"], "--llm", "--adapter"),
    ],
)
def test_commands_offer_the_new_name_and_take_the_old(path: list[str], old: str, new: str) -> None:
    shown = CliRunner().invoke(cli, [*path, "--help"]).output
    assert f"{new} " in shown
    assert f"  {old} " not in shown
    ended = CliRunner().invoke(cli, [*path, old, "x", "--help"])
    assert ended.exit_code == 0, ended.output
    assert f"warning: {old} is now called {new}" in ended.stderr


def test_export_verify_is_now_check() -> None:
    ended = CliRunner().invoke(cli, ["export", "verify", "--help"])
    assert "Repeat every check on a bundle" in ended.stdout
    assert "export verify is now called" in ended.stderr
    assert "verify" not in CliRunner().invoke(cli, ["export", "--help"]).stdout


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "mechm", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split(",")[0]) == (0, "mechm")
