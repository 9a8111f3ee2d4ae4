"""The reliability diagram: the share of right answers against the probability that they were given with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mechm.evaluation.figures.style import (
    DASHES,
    LIGHT,
    MARKERS,
    add_axes,
    figure_style,
    fitted,
    new_figure,
    subtitle_of,
)
from mechm.evaluation.figures.svg import to_svg
from mechm.evaluation.reliability import Reliability
from mechm.evaluation.report import Calibration, ScoreReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 496.0
MIN_SIDE, MAX_SIDE = 5.0, 20.0
"""Pixels of a mark: its area follows the number of answers in the bin."""


def draw_reliability(report: ScoreReport, calibration: Calibration) -> str:
    """Emotions (circles) and pairs (squares) as an SVG document; calibrated probabilities lie on the dotted diagonal.

    Raises: MissingExtraError: matplotlib is not installed.
    """
    described = (
        f"{name}: "
        + ", ".join(f"given {b.mean_probability:.0%}, right {b.share_right:.0%} of {b.n:,}" for b in scored.bins)
        for name, scored in (("Emotions", calibration.emotions), ("Pairs", calibration.pairs))
        if scored.bins
    )
    title, subtitle = "Reliability: given probabilities and how often they are right", subtitle_of(report)
    with figure_style():
        figure = new_figure(title, subtitle, HEIGHT)
        _draw_bins(add_axes(figure), calibration)
        return to_svg(figure, f"{title}: {fitted(subtitle)}", ". ".join(described))


def _draw_bins(axes: Axes, calibration: Calibration) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MultipleLocator, PercentFormatter

    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="mean probability given", ylabel="share right")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MultipleLocator(0.2))
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.plot([0, 1], [0, 1], color=LIGHT["soft"], linewidth=1, linestyle=(0, (2, 4)))
    legend = []
    series = (("one", "emotions", calibration.emotions), ("two", "pairs", calibration.pairs))
    for (role, name, scored), dash in zip(series, DASHES, strict=False):
        look = {"color": LIGHT[role], "linestyle": dash}
        x, y = [b.mean_probability for b in scored.bins], [b.share_right for b in scored.bins]
        axes.plot(x, y, clip_on=False, **look)
        most = max((b.n for b in scored.bins), default=1)
        for b in scored.bins:
            side = max(MIN_SIDE, MAX_SIDE * (b.n / most) ** 0.5)
            mark = {"markersize": side, "color": LIGHT[role], "clip_on": False, "gid": f"mark-{name}-{b.low:.3f}"}
            axes.plot([b.mean_probability], [b.share_right], MARKERS[role], **mark)
        legend.append(Line2D([], [], marker=MARKERS[role], markersize=9, label=_legend_text(name, scored), **look))
    axes.legend(handles=legend, loc="upper left", bbox_to_anchor=(0.03, 0.97))


def _legend_text(name: str, scored: Reliability) -> str:
    return f"{name}: calibration error {scored.ece:.3f} (ECE of {scored.n:,})"
