"""Printing of the engines in a bundle."""

from __future__ import annotations

import sys

import click

from mechm_export.tensorrt.engines import EnginesReport
from mechm_runtime.bundle.manifest import Bundle


def print_engines(report: EnginesReport, bundle: Bundle) -> None:
    """Print the bundle's engines, how their parts answer, and which parts were left out."""
    from rich.console import Console
    from rich.table import Table

    engines = Table(title="Engines")
    for heading in ("part", "library", "precision", "compute capabilities"):
        engines.add_column(heading)
    for heading in ("MB", "GPU memory, MB"):
        engines.add_column(heading, justify="right")
    for engine in report.engines:
        key = engine.key
        size = bundle.manifest["files"][engine.file]["size_bytes"] / 1e6
        capabilities = " ".join(key.compute_capabilities)
        memory = engine.memory_bytes / 1e6
        library = f"{key.library} {key.version}"
        engines.add_row(engine.part, library, key.precision, capabilities, f"{size:.1f}", f"{memory:.0f}")
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(engines)
    if report.checks:
        checks = Table(title="Answers with one part rounded as its engine rounds, against fp32; computed on the CPU")
        checks.add_column("conversations, part")
        for heading in ("utterances", "labels kept", "pairs kept"):
            checks.add_column(heading, justify="right")
        for part, found in report.checks.items():
            for check in found:
                figures = (str(check.n_utterances), f"{check.labels_kept:.2%}", f"{check.pairs_kept:.2%}")
                checks.add_row(f"{check.split}, {part}", *figures)
        console.print(checks)
    for part, reason in report.refused.items():
        click.echo(f"{part} was left out: {reason}")
    click.echo("GPU memory is an estimate; no engine was run")
