"""Printing of a diagnosis."""

from __future__ import annotations

import sys

import click

from mechm_export.diagnose.run import DiagnosisReport
from mechm_export.diagnose.search import Difference

MAX_PRINTED_LAYERS = 20
"""Layers in the table; `--json` has all."""


def print_diagnosis(report: DiagnosisReport) -> None:
    """Print the layers, worst first, and those to keep in fp32."""
    from rich.console import Console
    from rich.table import Table

    found = report.diagnosis
    kept = set(found.kept)
    table = Table(title=f"{report.subject} in {report.precision}: each layer lowered alone, worst first")
    table.add_column("layer")
    table.add_column("operator")
    for heading in ("error", "cosine", "KL, nats", "largest channel / median"):
        table.add_column(heading, justify="right")
    for layer in found.layers[:MAX_PRINTED_LAYERS]:
        name = f"{layer.name} *" if layer.name in kept else layer.name
        outliers = "" if layer.outliers is None else f"{layer.outliers:.1f}"
        table.add_row(name, layer.operator, *_figures(layer.difference), outliers)
    table.add_section()
    table.add_row(f"all {len(found.layers)} together", "", *_figures(found.together), "")
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(table)
    if not found.problem:
        click.echo(f"{report.precision} passes as it is: there is nothing to keep in fp32")
        return
    click.echo(f"fails: {found.problem}")
    if not found.solved:
        click.echo("it fails even with every layer in fp32: the gate asks for more than these layers can give")
        return
    click.echo(f"passes with {len(found.kept)} of {len(found.layers)} layers in fp32 (*):")
    for name in found.kept:
        click.echo(f"  {name}")


def _figures(difference: Difference) -> tuple[str, str, str]:
    kl = "" if difference.kl is None else f"{difference.kl:.1e}"
    return f"{difference.relative_error:.1e}", f"{difference.cosine:.5f}", kl
