"""The `mechm` command: a table of commands, each imported only when it runs.

A row names a module, the click command in it and one line of help, so that `mechm --help` is fast and works without
torch. The modules named here import heavy packages inside their functions.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import click

CommandTable = Mapping[str, tuple[str, str, str]]
"""Name of a command -> its module, the click command in it, one line of help."""

COMMANDS: CommandTable = {
    "analyze": ("mechm.cli.analyze", "analyze", "Find emotions and their causes in a recording or transcript."),
    "ask": ("mechm.cli.ask", "ask", "Ask an imported MiniGPT-v2 about pictures and recordings."),
    "bench": ("mechm.cli.bench", "bench", "Measure a bundle's speed, memory and accuracy, also against rivals."),
    "bundle": ("mechm_export.cli.deployment", "bundle", "Fetch, inspect, compare, sign, split and pack bundles."),
    "doctor": ("mechm.cli.doctor", "doctor", "Show what is installed, what works here and what to install."),
    "evaluate": ("mechm.cli.evaluate", "evaluate", "Score a bundle or a submission on annotated conversations."),
    "export": ("mechm_export.cli", "export", "Export weights to a verified bundle."),
    "import": ("mechm.cli.importing", "import_group", "Convert a model of another project."),
    "merge": ("mechm.cli.merge", "merge", "Merge the Llama's adapter into its base: a plain Hugging Face model."),
    "serve": ("mechm.cli.serve", "serve", "Serve a bundle's Llama with vLLM."),
    "train": (
        "mechm.cli.train",
        "train",
        "Train the fusion, the Llama's adapter, the projector and their combination.",
    ),
    "weights": ("mechm.cli.weights", "weights", "Download, list and locate base weights."),
}


class LazyGroup(click.Group):
    """A group that lists its commands from a table, without importing them, and imports a command on use.

    renamed: old name of a command -> its name; old names work, with a warning, and are not listed.
    """

    def __init__(
        self, *args: Any, table: CommandTable, renamed: Mapping[str, str] | None = None, **attributes: Any
    ) -> None:
        super().__init__(*args, **attributes)
        self._table = table
        self._renamed = renamed or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the table, sorted."""
        return sorted(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command; None for an unknown name."""
        if cmd_name in self._renamed:
            from mechm.cli.options.renamed import warn_of_rename

            warn_of_rename(f"{ctx.command_path} {cmd_name}", f"{ctx.command_path} {self._renamed[cmd_name]}")
            cmd_name = self._renamed[cmd_name]
        if cmd_name not in self._table:
            return None
        module, attribute, _ = self._table[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the table's help lines."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._table[name][2]) for name in self.list_commands(ctx)])


@click.command(cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("mechm"), prog_name="mechm")
def cli() -> None:
    """Emotion-cause analysis of conversations: the emotion of each utterance, and the utterances that caused it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors of the library are printed as one line and a hint, and set the exit code."""
    from mechm_runtime.errors import MechmError
    from mechm_runtime.system.telemetry import disable_telemetry

    disable_telemetry()
    try:
        cli.main(args=None if arguments is None else list(arguments), prog_name="mechm", standalone_mode=True)
    except MechmError as error:
        click.echo(f"error: {error}", err=True)
        if error.hint:
            click.echo(f"hint: {error.hint}", err=True)
        sys.exit(error.exit_code)
