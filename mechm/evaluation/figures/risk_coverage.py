"""Risk against coverage: how many answers are wrong when only the surest are given."""

from __future__ import annotations

import math
from collections.abc import Iterator

from mechm.evaluation.abstention import RiskCoverage
from mechm.evaluation.figures.sheet import Plot, sheet, subtitle_of, text
from mechm.evaluation.report import ScoreReport


def draw_risk_coverage(report: ScoreReport, risk: RiskCoverage) -> str:
    """The curve as an SVG document, with the coverages whose accuracy the report states."""
    plot = _plot(max((point.risk for point in risk.curve), default=0.0))
    known = {coverage: accuracy for coverage, accuracy in risk.accuracy_at.items() if accuracy is not None}
    described = "; ".join(f"{float(coverage):.0%} answered, {1 - value:.1%} wrong" for coverage, value in known.items())
    return sheet(
        subtitle_of(report),
        f"Wrong answers when only the surest are given (AURC {risk.aurc:.3f})",
        f"Risk against coverage: {described}.",
        plot.bottom + 60,
        _drawing(risk, known, plot),
    )


def _drawing(risk: RiskCoverage, known: dict[str, float], plot: Plot) -> Iterator[str]:
    yield from plot.axes("coverage: utterances that are answered", "risk: answers that are wrong")
    yield plot.path(((point.coverage, point.risk) for point in risk.curve), "one")
    for coverage, accuracy in known.items():
        x, y = plot.at(float(coverage), 1 - accuracy)
        yield f'<circle class="dot-one" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
        yield text(x, y - 12, f"{1 - accuracy:.1%}", "end strong")


def _plot(highest: float) -> Plot:
    """A plot of at most six round steps that holds the highest risk, and a fifth at least: low risk should look low."""
    for step in (0.05, 0.1, 0.2):
        n_steps = math.ceil(max(highest + 0.02, 0.2) / step - 1e-9)
        if n_steps <= 6:
            break
    return Plot(y_max=n_steps * step, y_step=step)
