"""The report on a written or verified bundle: how its graphs and answers compare with torch, and what was left out."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from mechm_export.gate.comparison import TaskCheck, ValueCheck
from mechm_export.gate.run import Graph, problems_of
from mechm_runtime.bundle.manifest import ACCEPTED, Bundle

PIPED_WIDTH = 130
"""Columns of piped output, which has no width of its own: the tables need them to keep a row on one line."""


@dataclass(frozen=True, slots=True)
class BundleReport:
    """A bundle, its comparison with torch, and the graphs that were left out with the reason."""

    bundle: Bundle
    values: tuple[ValueCheck, ...]
    tasks: tuple[TaskCheck, ...]
    refused: Mapping[Graph, str] = field(default_factory=dict)

    @property
    def problems(self) -> list[str]:
        """Where answers differ from torch's by more than the gate allows, except where that loss was accepted."""
        lossy = {precision for _, precision in self.accepted_losses}
        if any((part.name, part.default) in self.accepted_losses for part in self.bundle.parts.values()):
            lossy.add("default")
        return problems_of(task for task in self.tasks if task.precision not in lossy)

    @property
    def accepted_losses(self) -> dict[Graph, str]:
        """Graphs that were written although they fail the gate, with the reason."""
        found = self.bundle.manifest["checks"].get(ACCEPTED, ())
        return {(one["part"], one["precision"]): one["reason"] for one in found}


def print_report(report: BundleReport) -> None:
    """Print the tables of parts and of answers, and what was left out."""
    from rich.console import Console
    from rich.table import Table

    sizes = {name: facts["size_bytes"] for name, facts in report.bundle.manifest["files"].items()}
    values = Table(title="Parts against torch, random inputs of several sizes")
    for heading in ("part", "precision"):
        values.add_column(heading)
    for heading in ("MB", "largest difference", "lowest cosine"):
        values.add_column(heading, justify="right")
    for check in report.values:
        part = report.bundle.parts.get(check.part)
        if part is None or check.precision not in part.files:
            continue  # not in the split bundle
        marked = f"{check.precision} *" if part.default == check.precision else check.precision
        size = sizes[part.files[check.precision]] / 1e6
        values.add_row(check.part, marked, f"{size:.1f}", f"{check.largest_difference:.1e}", f"{check.cosine:.5f}")
    tasks = Table(title="Answers against torch")
    for heading in ("conversations", "precision"):
        tasks.add_column(heading)
    for heading in ("utterances", "labels kept", "pairs kept", "weighted F1", "torch", "micro F1"):
        tasks.add_column(heading, justify="right")
    for task in report.tasks:
        tasks.add_row(
            task.split,
            task.precision,
            str(task.n_utterances),
            f"{task.labels_kept:.2%}",
            f"{task.pairs_kept:.2%}",
            *(_score(value) for value in (task.weighted_f1, task.torch_weighted_f1, task.micro_f1)),
        )
    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    console.print(values)
    console.print("* what the runtime runs by default")
    console.print(tasks)
    for (name, precision), reason in report.accepted_losses.items():
        console.print(f"{name}: {precision} was written although {reason}", highlight=False, soft_wrap=True)
    for (name, precision), reason in report.refused.items():
        console.print(f"{name}: {precision} was left out: {reason}", highlight=False, soft_wrap=True)
    console.print(f"bundle: {sum(sizes.values()) / 1e6:.1f} MB", highlight=False)


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
