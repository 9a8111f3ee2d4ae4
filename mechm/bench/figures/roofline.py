"""The roofline (Williams, Waterman and Patterson 2009): what each part reaches of what the machine can do.

Below the slanted line memory is the limit, below the flat ones multiplication: in int8, and in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator

from mechm.bench.figures.axes import DASHES, LogAxes, around, below_title
from mechm.bench.limits import Limits
from mechm.bench.results import Results
from mechm.evaluation.figures.sheet import sheet, text

LEAST_SHARE = 0.005
"""Parts that take less of their system's model time are left out: they would only cover others."""


def draw_roofline(results: Results, limits: Limits) -> str:
    """The figure as an SVG document."""
    points = [
        (f"{part.part}{_suffix(number)}", part.operations_per_byte, part.gops, number)
        for number, one in enumerate(results.stages)
        for part in one.parts
        if part.gops > 0 and part.ms >= LEAST_SHARE * one.model_ms
    ]
    ridge = limits.int8_gops / limits.memory_gbs
    axes = LogAxes(
        around([*(x for _, x, _, _ in points), ridge / 10, ridge * 10]),
        around([*(y for _, _, y, _ in points), 1.2 * limits.int8_gops, limits.fp32_gflops / 20]),
    )
    described = (
        f"{part.part} of {one.system}: {part.gops:.4g} billion operations a second, {share_in_words(part.share)}"
        for one in results.stages
        for part in one.parts
    )
    legend = [
        f"{_suffix(number).strip() or 'without a mark'}: {one.system}" for number, one in enumerate(results.stages)
    ]
    return sheet(
        below_title(results),
        "What each model reaches of what the machine can do",
        ". ".join(described),
        axes.bottom + 60 + 20 * len(legend),
        _drawing(axes, points, limits, legend),
    )


def share_in_words(share: float | None) -> str:
    """Such as `61% of the limit`."""
    return "limit not measured" if share is None else f"{share:.0%} of the limit"


def _drawing(
    axes: LogAxes, points: list[tuple[str, float, float, int]], limits: Limits, legend: list[str]
) -> Iterator[str]:
    yield from axes.axes("operations a byte", "billion operations a second")
    first, last = axes.x_range
    roofs = (("int8", limits.int8_gops, DASHES[0]), ("fp32", limits.fp32_gflops, DASHES[1]))
    for name, peak, dash in roofs:
        ridge = peak / limits.memory_gbs
        slope = [(max(first, axes.y_range[0] / limits.memory_gbs), max(axes.y_range[0], first * limits.memory_gbs))]
        yield axes.path([*slope, (ridge, peak), (last, peak)], "ideal", dash)
        x, y = axes.at(last, peak)
        yield text(x - 4, y - 6, f"{name}: {peak:,.0f}", "soft end small")
    for label, x_value, y_value, number in points:
        x, y = axes.at(x_value, y_value)
        yield f'<circle class="dot-{("one", "two")[number % 2]}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
        beside = (x - 8, "small end") if x > axes.left + 0.85 * axes.width else (x + 8, "small")
        yield text(beside[0], y + 4, label, beside[1])
    for number, line in enumerate(legend):
        yield text(axes.left, axes.bottom + 68 + 20 * number, line)


def _suffix(number: int) -> str:
    return "" if number == 0 else " " + "'" * number
