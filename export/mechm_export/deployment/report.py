"""Printing of an inspection, and of the differences of two bundles."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from mechm_runtime.bundle.terms import OWN_DATA_PAGE

if TYPE_CHECKING:
    from rich.console import Console

    from mechm_export.deployment.difference import Difference
    from mechm_export.deployment.inspection import Inspection

PIPED_WIDTH = 130
"""Columns of piped output, which has no width of its own."""
MAX_VALUE_CHARACTERS = 60
"""Characters of a value that differs; --json has all of it."""


def print_differences(differences: Iterable[Difference]) -> None:
    """Print one line per value that differs, under headings of sections."""
    section = ""
    for difference in differences:
        if difference.section != section:
            section = difference.section
            click.echo(f"{section}:")
        click.echo(f"  {difference.name}: {_shortened(difference.before)} -> {_shortened(difference.after)}")


def _shortened(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_VALUE_CHARACTERS else f"{text[: MAX_VALUE_CHARACTERS - 1]}…"


def print_inspection(found: Inspection) -> None:
    """Print the contents of a bundle: parts, answers, licences and versions."""
    from rich.console import Console

    _print_summary(found)
    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)
    _print_parts(found, console)
    _print_answers(found, console)
    for one in found.accepted:
        console.print(f"{one['part']}: {one['precision']} was written although {one['reason']}", soft_wrap=True)
    _print_origins(found, console)


def _print_summary(found: Inspection) -> None:
    split_from = f", split from {found.split_from}" if found.split_from else ""
    signed = "signed; mechm bundle verify --key says by whom" if found.is_signed else "not signed"
    llama = f"; Llama: {', '.join(found.llama)}" if found.llama else ""
    click.echo(f"{found.id}: preset {found.preset}, schema {found.schema_version}{split_from}, {signed}")
    if found.terms:
        click.echo(f"{found.terms} To train on your own data: {OWN_DATA_PAGE}")
    if_asked = [modality for modality in found.modalities if modality not in found.default_modalities]
    reads = ", ".join(found.default_modalities) + (f", and {', '.join(if_asked)} if asked to" if if_asked else "")
    click.echo(f"{found.size_bytes / 1e6:.1f} MB; reads {reads}{llama}")


def _print_parts(found: Inspection, console: Console) -> None:
    from rich.table import Table

    parts = Table(title="Parts", title_justify="left", box=None, pad_edge=False)
    for heading in ("part", "precision"):
        parts.add_column(heading)
    for heading in ("MB", "difference", "cosine"):
        parts.add_column(heading, justify="right")
    for heading in ("inputs", "outputs"):
        parts.add_column(heading, overflow="fold")
    for part in found.parts:
        for index, p in enumerate(part.precisions):
            tensors = [" ".join(t.name for t in side) if index == 0 else "" for side in (part.inputs, part.outputs)]
            parts.add_row(
                part.name if index == 0 else "",
                f"{p.name} *" if p.is_default else p.name,
                f"{p.size_bytes / 1e6:.1f}",
                "" if p.largest_difference is None else f"{p.largest_difference:.1e}",
                "" if p.cosine is None else f"{p.cosine:.5f}",
                *tensors,
            )
    console.print(parts)
    console.print("* what the runtime runs by default; difference and cosine against torch on random inputs")


def _print_answers(found: Inspection, console: Console) -> None:
    from rich.table import Table

    if not found.scores:
        console.print("Answers: not checked for what is in this bundle")
        return
    scores = Table(title="Answers, against torch", title_justify="left", box=None, pad_edge=False)
    for heading in ("conversations", "precision"):
        scores.add_column(heading)
    for heading in ("utterances", "labels kept", "weighted F1", "torch"):
        scores.add_column(heading, justify="right")
    for task in found.scores:
        f1 = [task.get(key) for key in ("weighted_f1", "torch_weighted_f1")]
        scores.add_row(
            str(task["split"]),
            str(task["precision"]),
            str(task["n_utterances"]),
            f"{task['labels_kept']:.2%}",
            *("" if value is None else f"{value:.4f}" for value in f1),
        )
    console.print(scores)


def _print_origins(found: Inspection, console: Console) -> None:
    from rich.table import Table

    for title, values in (("Licences", found.licences), ("Made with", found.versions)):
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
        for name, value in values.items():
            table.add_row(name, value)
        console.print(table)
