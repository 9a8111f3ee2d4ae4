"""Reliability: what share of answers is right, for each probability that was given them."""

from __future__ import annotations

from collections.abc import Iterator

from mechm.evaluation.figures.sheet import Plot, sheet, subtitle_of, text
from mechm.evaluation.reliability import Reliability
from mechm.evaluation.report import Calibration, ScoreReport

MIN_SIDE, MAX_SIDE = 5.0, 20.0
"""Pixels of a mark: its area follows how many answers the bin holds."""


def draw_reliability(report: ScoreReport, calibration: Calibration) -> str:
    """Emotions (circles) and pairs (squares) as an SVG document; on the dotted diagonal probabilities are what they
    say."""
    plot = Plot()
    described = (
        f"{name}: "
        + ", ".join(f"given {b.mean_probability:.0%}, right {b.share_right:.0%} of {b.n:,}" for b in scored.bins)
        for name, scored in (("Emotions", calibration.emotions), ("Pairs", calibration.pairs))
        if scored.bins
    )
    return sheet(
        subtitle_of(report),
        "What is said with a probability, and how often it is right",
        ". ".join(described),
        plot.bottom + 60,
        _drawing(calibration, plot),
    )


def _drawing(calibration: Calibration, plot: Plot) -> Iterator[str]:
    yield from plot.axes("probability that was given", "share that was right")
    yield plot.path(((0, 0), (1, 1)), "ideal")
    series = (("one", "emotions", calibration.emotions), ("two", "pairs found", calibration.pairs))
    for row, (style, name, scored) in enumerate(series):
        yield plot.path(((b.mean_probability, b.share_right) for b in scored.bins), style)
        most = max((b.n for b in scored.bins), default=1)
        for b in scored.bins:
            x, y = plot.at(b.mean_probability, b.share_right)
            yield _mark(style, x, y, max(MIN_SIDE, MAX_SIDE * (b.n / most) ** 0.5))
        y = plot.top + 22 + 22 * row
        yield f'<path class="{style}" d="M{plot.left + 14:.1f} {y - 4:.1f}h34"/>'
        yield _mark(style, plot.left + 31, y - 4, 9.0)
        yield text(plot.left + 58, y, _legend(name, scored))


def _legend(name: str, scored: Reliability) -> str:
    return f"{name}: calibration error {scored.ece:.3f} (ECE of {scored.n:,})"


def _mark(style: str, x: float, y: float, side: float) -> str:
    if style == "one":
        return f'<circle class="dot-one" cx="{x:.1f}" cy="{y:.1f}" r="{side / 2:.1f}"/>'
    return (
        f'<rect class="dot-two" x="{x - side / 2:.1f}" y="{y - side / 2:.1f}" width="{side:.1f}" height="{side:.1f}"/>'
    )
