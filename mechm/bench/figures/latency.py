"""Latency of the single-stream scenario: one row per system, one mark per query, on a logarithmic axis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mechm.bench.figures.axes import padded_range, set_log_axis, subtitle_of
from mechm.bench.results import Results
from mechm.bench.single_stream import SingleStream, SystemTimes
from mechm.evaluation.figures.style import HEADER, LIGHT, WIDTH, add_axes, figure_style, fitted, new_figure
from mechm.evaluation.figures.svg import to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW = 54.0
"""Pixels per system."""
LEFT, TOP = 24.0, HEADER + 8.0


def draw_latency(results: Results, measured: SingleStream) -> str:
    """The figure as an SVG document: a thick line at the median, a thin one at p99.

    Raises: MissingExtraError: matplotlib is not installed.
    """
    rows = sorted(measured.systems, key=lambda one: (one.llm, one.latency.p50_ms))
    described = (
        f"{one.system}: p50 {one.latency.p50_ms:,.0f} ms, p99 {one.latency.p99_ms:,.0f} ms of {one.latency.n}"
        for one in rows
    )
    title, subtitle = f"Latency of {measured.conversation}", subtitle_of(results)
    height = ROW * len(rows)
    with figure_style():
        figure = new_figure(title, subtitle, TOP + height + 56)
        _draw_rows(add_axes(figure, left=LEFT, top=TOP, width=WIDTH - 2 * LEFT, height=height), rows)
        return to_svg(figure, f"{title}: {fitted(subtitle)}", ". ".join(described))


def _draw_rows(axes: Axes, rows: list[SystemTimes]) -> None:
    """Rows from the top; one unit of the y axis is a pixel, downwards."""
    set_log_axis(axes.xaxis, padded_range([ms for one in rows for ms in one.latency.samples_ms]))
    axes.set(ylim=(ROW * len(rows), 0), yticks=[], xlabel="milliseconds per conversation")
    for number, one in enumerate(rows):
        colour = LIGHT["two" if one.is_rival else "one"]
        latency, top = one.latency, ROW * number
        axes.text(
            4 / (WIDTH - 2 * LEFT),
            top + 18,
            f"{one.system}: p50 {latency.p50_ms:,.0f}, p99 {latency.p99_ms:,.0f}, {latency.n} queries",
            transform=axes.get_yaxis_transform(),
            fontweight="normal" if one.is_rival else "bold",
        )
        queries = [top + 36] * len(latency.samples_ms)
        axes.plot(latency.samples_ms, queries, "o", color=colour, alpha=0.35, gid=f"queries-{number}")
        for ms, width in ((latency.p50_ms, 3), (latency.p99_ms, 1)):
            axes.plot([ms, ms], [top + 26, top + 46], color=colour, linewidth=width, solid_capstyle="butt")
