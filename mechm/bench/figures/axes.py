"""Logarithmic axes on the sheet that every figure of the project is drawn on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from mechm.bench.results import Results
from mechm.evaluation.figures.sheet import HEADER, WIDTH, text

Range = tuple[float, float]

STEPS = ((0.6, 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1.2, 1, 1.5, 2, 3, 5, 7), (2.5, 1, 2, 5), (math.inf, 1))
"""Powers of ten that an axis spans at most, and what its powers are multiplied with for its values."""
DASHES = ("", "7 4", "2 3", "10 3 2 3")
"""Series of one colour differ in their dashes."""


@dataclass(frozen=True, slots=True)
class LogAxes:
    """A rectangle whose axes are both logarithmic; positions in pixels."""

    x_range: Range
    y_range: Range
    left: float = 72.0
    top: float = HEADER + 12.0
    width: float = WIDTH - 72.0 - 28.0
    height: float = 360.0

    @property
    def bottom(self) -> float:
        """The x axis."""
        return self.top + self.height

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a value is drawn; one beyond the axes at their end."""
        return (
            self.left + _part(x, self.x_range) * self.width,
            self.bottom - _part(y, self.y_range) * self.height,
        )

    def path(self, points: Iterable[tuple[float, float]], style: str, dash: str = "") -> str:
        """A line through values."""
        steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in points))
        dashed = f' style="stroke-dasharray:{dash}"' if dash else ' style="stroke-dasharray:none"'
        return f'<polyline class="{style}" points="{steps}"{dashed}/>'

    def axes(self, x_name: str, y_name: str) -> Iterator[str]:
        """Lines at round values, and the axes' names."""
        for value in round_values(self.x_range):
            x, _ = self.at(value, self.y_range[0])
            yield f'<path class="grid" d="M{x:.1f} {self.top:.1f}V{self.bottom:.1f}"/>'
            yield text(x, self.bottom + 19, f"{value:,g}", "soft middle")
        for value in round_values(self.y_range):
            _, y = self.at(self.x_range[0], value)
            yield f'<path class="grid" d="M{self.left:.1f} {y:.1f}h{self.width:.1f}"/>'
            yield text(self.left - 8, y + 4, f"{value:,g}", "soft end")
        yield text(self.left + self.width / 2, self.bottom + 42, x_name, "middle")
        turned = f'transform="translate(20 {self.top + self.height / 2:.1f}) rotate(-90)"'
        yield f'<text class="middle" {turned}>{escape(y_name)}</text>'


def around(values: Sequence[float]) -> Range:
    """A range of at least a factor of two that holds all values, with a tenth of room at both ends."""
    least, most = min(values), max(values)
    if most < 2 * least:
        middle = math.sqrt(least * most)
        least, most = middle / math.sqrt(2), middle * math.sqrt(2)
    return least / 1.1, most * 1.1


def round_values(limits: Range) -> list[float]:
    """Round values inside a range, the fewer to a power of ten the wider it is."""
    low, high = (math.log10(limit) for limit in limits)
    leading = next(steps for width, *steps in STEPS if high - low < width)
    powers = range(math.floor(low), math.ceil(high) + 1)
    return [value for power in powers for value in (lead * 10.0**power for lead in leading) if _inside(value, limits)]


def below_title(results: Results) -> str:
    """The line below a figure's title: machine, date and bundle."""
    machine = results.machine
    return f"{machine.cpu}, {machine.cores:g} cores · {results.made[:10]} · bundle {results.bundle_id}"


def _inside(value: float, limits: Range) -> bool:
    return limits[0] <= value <= limits[1]


def _part(value: float, limits: Range) -> float:
    low, high = (math.log10(limit) for limit in limits)
    return min(1.0, max(0.0, (math.log10(max(value, 1e-12)) - low) / (high - low)))
