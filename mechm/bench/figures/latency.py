"""Latency in the single stream: every query a mark, on a logarithmic axis; a row a system."""

from __future__ import annotations

from collections.abc import Iterator

from mechm.bench.figures.axes import LogAxes, around, below_title, round_values
from mechm.bench.results import Results
from mechm.bench.single_stream import SingleStream, SystemTimes
from mechm.evaluation.figures.sheet import HEADER, WIDTH, sheet, text

ROW = 54.0
TOP = HEADER + 8.0


def draw_latency(results: Results, measured: SingleStream) -> str:
    """The figure as an SVG document: a thick line at the median, a thin one at p99."""
    rows = sorted(measured.systems, key=lambda one: (one.llm, one.latency.p50_ms))
    described = (
        f"{one.system}: p50 {one.latency.p50_ms:,.0f} ms, p99 {one.latency.p99_ms:,.0f} ms of {one.latency.n}"
        for one in rows
    )
    axes = LogAxes(
        around([ms for one in rows for ms in one.latency.samples_ms]),
        (1.0, 10.0),
        left=24.0,
        top=TOP,
        width=WIDTH - 48.0,
        height=ROW * len(rows),
    )
    return sheet(
        below_title(results),
        f"Milliseconds for {measured.conversation}",
        ". ".join(described),
        axes.bottom + 56,
        _drawing(axes, rows),
    )


def _drawing(axes: LogAxes, rows: list[SystemTimes]) -> Iterator[str]:
    for value in round_values(axes.x_range):
        x, _ = axes.at(value, 1.0)
        yield f'<path class="grid" d="M{x:.1f} {axes.top:.1f}V{axes.bottom:.1f}"/>'
        yield text(x, axes.bottom + 18, f"{value:,g}", "soft middle")
    yield text(axes.left + axes.width / 2, axes.bottom + 40, "milliseconds a conversation", "middle")
    for number, one in enumerate(rows):
        colour = "two" if one.is_rival else "one"
        base = axes.top + ROW * number
        spread = f"p50 {one.latency.p50_ms:,.0f}, p99 {one.latency.p99_ms:,.0f}, {one.latency.n} times"
        yield text(axes.left + 4, base + 18, f"{one.system}: {spread}", "strong" if not one.is_rival else "")
        for ms in one.latency.samples_ms:
            x, _ = axes.at(ms, 1.0)
            yield f'<circle class="dot-{colour}" fill-opacity="0.35" cx="{x:.1f}" cy="{base + 36:.1f}" r="4"/>'
        for ms, width in ((one.latency.p50_ms, 3), (one.latency.p99_ms, 1)):
            x, _ = axes.at(ms, 1.0)
            style = f'style="stroke-width:{width};stroke-dasharray:none"'
            yield f'<path class="{colour}" {style} d="M{x:.1f} {base + 26:.1f}v20"/>'
