"""Results of `encoders.py --out`: rows in a JSON file, and a page of tables beside it. No benchmark by itself.

An encoder that is measured again takes the place of its rows; those of another machine or of other versions go first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from encoder_graphs import ENCODERS, Row

from mechm.bench.machine import Machine, describe_machine

HEADINGS = ("target", "precision", "MB", "export s", "peak GB", "difference", "cosine")
TEXT = """# Encoders

Of `{command}`.
{cpu}, {cores:g} cores, {system}; {versions}.

Weights: {weights}.

A graph's difference and lowest cosine are from torch fp32; export seconds, and the most memory that the process had
meanwhile, include the fp32 graph that a precision is made of. A time is a median in ms; behind it, how many times
faster than torch eager fp32 in the same process, in turns with it, and in brackets than torch.compile.
"""


def keep(out: Path, rows: Sequence[Row], notes: Sequence[str], command: str) -> Path:
    """Put rows into a JSON file, and write the page; returns the page's path.

    rows: of whole encoders. notes: each begins with the name of its encoder.
    """
    machine = asdict(describe_machine())
    kept = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    if kept.get("machine") != machine:
        kept = {"rows": [], "notes": []}
    measured = {row.encoder for row in rows}
    all_rows = [Row(**row) for row in kept["rows"] if row["encoder"] not in measured] + list(rows)
    all_notes = [note for note in kept["notes"] if note.partition(":")[0] not in measured] + list(notes)
    places = {name: place for place, name in enumerate(ENCODERS)}
    all_rows.sort(key=lambda row: places[row.encoder])
    all_notes.sort(key=lambda note: places[note.partition(":")[0]])
    out.parent.mkdir(parents=True, exist_ok=True)
    written = {"machine": machine, "rows": [asdict(row) for row in all_rows], "notes": all_notes}
    out.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    page = out.with_suffix(".md")
    page.write_text(_page(Machine(**machine), all_rows, all_notes, command), encoding="utf-8")
    return page


def _page(machine: Machine, rows: Sequence[Row], notes: Sequence[str], command: str) -> str:
    kinds = ("real", "random")
    weights = "; ".join(
        f"{kind} of {', '.join(dict.fromkeys(row.encoder for row in rows if row.weights == kind))}"
        for kind in kinds
        if any(row.weights == kind for row in rows)
    )
    versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items() if name != "mechm")
    about = {"cpu": machine.cpu, "cores": machine.cores, "system": machine.system, "versions": versions}
    parts = [TEXT.format(command=command, weights=weights, **about)]
    for encoder, size in dict.fromkeys((row.encoder, row.size) for row in rows):
        of_size = [row for row in rows if (row.encoder, row.size) == (encoder, size)]
        parts.append(f"## {encoder}{f', {size}' if size else ''}\n\n{_table(of_size)}")
    if notes:
        parts.append("## What could not be made\n\n" + "\n".join(f"- {note}" for note in notes))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(rows: Sequence[Row]) -> str:
    runs = sorted({(row.threads, row.batch) for row in rows if row.graph_ms})
    headings = [*HEADINGS, *(f"batch {batch}, {threads} thread{'s' * (threads > 1)}" for threads, batch in runs)]
    lines = [f"| {' | '.join(headings)} |", f"|{' --- |' * 2}{' ---: |' * (len(headings) - 2)}"]
    graphs = dict.fromkeys((row.target, row.precision) for row in rows)
    for graph in graphs:
        of_graph = [row for row in rows if (row.target, row.precision) == graph]
        first, timed = of_graph[0], {(row.threads, row.batch): row for row in of_graph}
        cells = [*graph, f"{first.megabytes:.1f}", f"{first.export_s:.1f}", f"{first.peak_gb:.1f}"]
        cells += [f"{first.largest_difference:.1e}", f"{first.cosine:.5f}"]
        cells += [_time(timed[run]) if run in timed else "" for run in runs]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _time(row: Row) -> str:
    compiled = f" ({row.compiled_ms / row.graph_ms:.2f})" if row.compiled_ms else ""
    return f"{row.graph_ms:.1f}: {row.eager_ms / row.graph_ms:.2f}{compiled}"
