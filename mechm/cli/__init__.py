"""The `mechm` command: a table of commands, each imported only when it runs.

A row names a module, the click command in it and one line of help, so that `mechm --help` is fast and works without
torch. The modules named here import heavy packages inside their functions.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version

import click

COMMANDS: dict[str, tuple[str, str, str]] = {
    "analyze": ("mechm.cli.analyze", "analyze", "Find emotions and their causes in a recording or transcript."),
    "ask": ("mechm.cli.ask", "ask", "Ask an imported MiniGPT-v2 about pictures and recordings."),
    "bench": ("mechm.cli.bench", "bench", "Measure a bundle's speed, memory and accuracy, also against rivals."),
    "bundle": ("mechm_export.cli.deployment", "bundle", "Inspect, compare, sign, split and pack bundles."),
    "doctor": ("mechm.cli.doctor", "doctor", "Show what is installed, what works here and what to install."),
    "evaluate": ("mechm.cli.evaluate", "evaluate", "Score a bundle or a submission on annotated conversations."),
    "export": ("mechm_export.cli.bundle", "export", "Export weights to a verified bundle."),
    "import": ("mechm.cli.importing", "import_group", "Convert a model of another project."),
    "merge": ("mechm.cli.merge", "merge", "Merge the Llama's adapter into its base: a plain Hugging Face model."),
    "serve": ("mechm.cli.serve", "serve", "Serve a bundle's Llama with vLLM."),
    "train": (
        "mechm.cli.train.fusion",
        "train",
        "Train the fusion and its heads, or the Llama's adapter, and weigh the two.",
    ),
    "weights": ("mechm.cli.weights", "weights", "Download, list and locate base weights."),
}


class LazyGroup(click.Group):
    """A group whose commands live in other modules and are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the table, sorted."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command, or None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the table's help lines without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][2]) for name in self.list_commands(ctx)])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("mechm"), prog_name="mechm")
def cli() -> None:
    """Emotion-cause analysis of conversations: the emotion of each utterance, and the utterances that caused it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors of the library are printed as one line and a hint, and set the exit code."""
    from mechm_runtime.errors import MechmError

    try:
        cli.main(args=None if arguments is None else list(arguments), prog_name="mechm", standalone_mode=True)
    except MechmError as error:
        click.echo(f"error: {error}", err=True)
        if error.hint:
            click.echo(f"hint: {error.hint}", err=True)
        sys.exit(error.exit_code)
