"""The roofline model (Williams, Waterman and Patterson 2009): each model's speed and the machine's limits.

Memory limits below the slanted line, arithmetic below the flat ones: one for int8, one for fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mechm.bench.figures.axes import padded_range, set_log_axis, subtitle_of
from mechm.bench.limits import Limits
from mechm.bench.results import Results
from mechm.evaluation.figures.style import DASHES, HEADER, LIGHT, add_axes, figure_style, fitted, new_figure
from mechm.evaluation.figures.svg import to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST_SHARE = 0.005
"""Parts that take less of their system's model time are left out: they would only cover others."""
HEIGHT = 360.0
SYMBOLS = (("one", "o"), ("two", "s"), ("one", "^"), ("two", "D"))
"""Colour and marker per system."""
NEAR = 1.25
"""Points of one part that differ by less than this factor share a label."""


@dataclass(frozen=True, slots=True)
class _Point:
    part: str
    system: int
    operations_per_byte: float
    gops: float


def draw_roofline(results: Results, limits: Limits) -> str:
    """The figure as an SVG document.

    Raises: MissingExtraError: matplotlib is not installed.
    """
    points = [
        _Point(part.part, number, part.operations_per_byte, part.gops)
        for number, one in enumerate(results.stages)
        for part in one.parts
        if part.gops > 0 and part.ms >= LEAST_SHARE * one.model_ms
    ]
    described = (
        f"{part.part} of {one.system}: {part.gops:.4g} billion operations per second, {share_in_words(part.share)}"
        for one in results.stages
        for part in one.parts
    )
    title, subtitle = "Speed of each model and the machine's limits", subtitle_of(results)
    names = [one.system for one in results.stages]
    with figure_style():
        figure = new_figure(title, subtitle, HEADER + 12 + HEIGHT + 60 + 21 * len(names))
        _draw_points(add_axes(figure, height=HEIGHT), points, limits, names)
        return to_svg(figure, f"{title}: {fitted(subtitle)}", ". ".join(described))


def share_in_words(share: float | None) -> str:
    """Such as `61% of the limit`."""
    return "limit not measured" if share is None else f"{share:.0%} of the limit"


def _draw_points(axes: Axes, points: Sequence[_Point], limits: Limits, names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    ridge = limits.int8_gops / limits.memory_gbs
    intensities = [*(point.operations_per_byte for point in points), ridge / 10, ridge * 10]
    speeds = [*(point.gops for point in points), 1.2 * limits.int8_gops, limits.fp32_gflops / 20]
    set_log_axis(axes.xaxis, padded_range(intensities))
    set_log_axis(axes.yaxis, padded_range(speeds))
    axes.set(xlabel="operations per byte", ylabel="billion operations per second")
    _draw_limits(axes, limits)
    for point in points:
        role, marker = SYMBOLS[point.system % len(SYMBOLS)]
        axes.plot([point.operations_per_byte], [point.gops], marker, color=LIGHT[role], markersize=9)
    for point in _labelled(points):
        axes.annotate(
            point.part,
            (point.operations_per_byte, point.gops),
            xytext=(8, 4),
            textcoords="offset pixels",
            fontsize=11,
            bbox={"facecolor": LIGHT["card"], "edgecolor": "none", "pad": 0.5},
        )
    legend = [
        Line2D([], [], color=LIGHT[role], marker=marker, linestyle="none", markersize=9, label=name)
        for name, (role, marker) in zip(names, SYMBOLS, strict=False)
    ]
    axes.legend(handles=legend, loc="upper left", bbox_to_anchor=(0, -54 / HEIGHT), handlelength=1)


def _draw_limits(axes: Axes, limits: Limits) -> None:
    """The two roofs, joined where memory is the limit."""
    first, last = axes.get_xlim()
    for name, peak, dash in (("int8", limits.int8_gops, DASHES[0]), ("fp32", limits.fp32_gflops, DASHES[1])):
        ridge = peak / limits.memory_gbs
        x, y = [first, ridge, last], [first * limits.memory_gbs, peak, peak]
        if ridge < first:
            x, y = [first, last], [peak, peak]
        axes.plot(x, y, color=LIGHT["soft"], linewidth=1, linestyle=dash)
        axes.annotate(
            f"{name}: {peak:,.0f}",
            (last, peak),
            xytext=(-4, 6),
            textcoords="offset pixels",
            ha="right",
            fontsize=11,
            color=LIGHT["soft"],
        )


def _labelled(points: Sequence[_Point]) -> list[_Point]:
    """The points that carry their part's name: the first of those that lie close together."""
    shown: list[_Point] = []
    for point in points:
        if not any(
            point.part == other.part
            and max(point.gops / other.gops, other.gops / point.gops) < NEAR
            and 1 / NEAR < point.operations_per_byte / other.operations_per_byte < NEAR
            for other in shown
        ):
            shown.append(point)
    return shown
