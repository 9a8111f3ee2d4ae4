"""Risk against coverage: the share of wrong answers when only the most confident ones are given."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mechm.evaluation.abstention import RiskCoverage
from mechm.evaluation.figures.style import LIGHT, add_axes, figure_style, fitted, new_figure, subtitle_of
from mechm.evaluation.figures.svg import to_svg
from mechm.evaluation.report import ScoreReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 496.0


def draw_risk_coverage(report: ScoreReport, risk: RiskCoverage) -> str:
    """The curve as an SVG document, with the coverages whose accuracy the report states.

    Raises: MissingExtraError: matplotlib is not installed.
    """
    known = {float(coverage): accuracy for coverage, accuracy in risk.accuracy_at.items() if accuracy is not None}
    described = "; ".join(f"{coverage:.0%} answered, {1 - value:.1%} wrong" for coverage, value in known.items())
    title, subtitle = f"Risk against coverage (AURC {risk.aurc:.3f})", subtitle_of(report)
    with figure_style():
        figure = new_figure(title, subtitle, HEIGHT)
        _draw_curve(add_axes(figure), risk, known)
        return to_svg(figure, f"{title}: {fitted(subtitle)}", f"Risk against coverage: {described}.")


def _draw_curve(axes: Axes, risk: RiskCoverage, known: dict[float, float]) -> None:
    from matplotlib.ticker import MultipleLocator, PercentFormatter

    step, top = _risk_axis(max((point.risk for point in risk.curve), default=0.0))
    axes.set(
        xlim=(0, 1),
        ylim=(0, top),
        xlabel="coverage: share of utterances answered",
        ylabel="risk: share of answers wrong",
    )
    axes.xaxis.set_major_locator(MultipleLocator(0.2))
    axes.yaxis.set_major_locator(MultipleLocator(step))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    x, y = [point.coverage for point in risk.curve], [point.risk for point in risk.curve]
    axes.plot(x, y, color=LIGHT["one"], gid="curve", clip_on=False)
    for coverage, accuracy in known.items():
        axes.plot([coverage], [1 - accuracy], "o", color=LIGHT["one"], markersize=10, clip_on=False)
        axes.annotate(
            f"{1 - accuracy:.1%}",
            (coverage, 1 - accuracy),
            xytext=(0, 12),
            textcoords="offset pixels",
            ha="right",
            fontweight="bold",
        )


def _risk_axis(highest: float) -> tuple[float, float]:
    """Step and end of an axis of at most six round steps that holds the highest risk.

    It ends at 20 % at least, so that a low risk looks low.
    """
    for step in (0.05, 0.1, 0.2):
        n_steps = math.ceil(max(highest + 0.02, 0.2) / step - 1e-9)
        if n_steps <= 6:
            break
    return step, n_steps * step
