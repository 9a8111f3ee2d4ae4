"""`mechm train`: the trainings, each imported only when it runs, so that the group's help works without torch."""

from __future__ import annotations

import click

from mechm.cli import CommandTable, LazyGroup

COMMANDS: CommandTable = {
    "combination": ("mechm.cli.train.combination", "combination", "Combine the Llama's answers with the fusion's."),
    "fusion": ("mechm.cli.train.fusion", "fusion", "Train the text encoder, the fusion and both heads."),
    "llm": ("mechm.cli.train.llm", "llm", "Train the Llama's LoRA adapter."),
    "projector": ("mechm.cli.train.projector", "projector", "Train the Llama's soft tokens for voices and faces."),
}


@click.command(cls=LazyGroup, table=COMMANDS)
def train() -> None:
    """Train the fusion, the Llama's adapter, the projector between them, and their combination."""
