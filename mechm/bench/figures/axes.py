"""Logarithmic axes with round ticks, for the benchmark's figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mechm.bench.results import Results

if TYPE_CHECKING:
    from matplotlib.axis import Axis

Range = tuple[float, float]

STEPS = ((0.6, 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1.2, 1, 1.5, 2, 3, 5, 7), (2.5, 1, 2, 5), (math.inf, 1))
"""Rows of: powers of ten that an axis spans at most, then the leading digits of its ticks."""
MAX_OWN_TICKS = 6
"""Up to so many different values are ticks themselves, in place of round numbers."""


def set_log_axis(axis: Axis, limits: Range, own: Sequence[float] = ()) -> None:
    """Make an axis logarithmic, with its limits and with ticks at round values.

    own: the values that are drawn; where they are few, the ticks stand at them.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes = axis.axes
    scale, limit = (axes.set_xscale, axes.set_xlim) if axis is axes.xaxis else (axes.set_yscale, axes.set_ylim)
    scale("log")
    limit(*limits)
    values = sorted(set(own))
    axis.set_major_locator(FixedLocator(values if 1 < len(values) <= MAX_OWN_TICKS else round_values(limits)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def padded_range(values: Sequence[float]) -> Range:
    """A range of at least a factor of two around all values, with a tenth of room at both ends."""
    least, most = min(values), max(values)
    if most < 2 * least:
        middle = math.sqrt(least * most)
        least, most = middle / math.sqrt(2), middle * math.sqrt(2)
    return least / 1.1, most * 1.1


def round_values(limits: Range) -> list[float]:
    """Round values inside a range, fewer per power of ten the wider the range is."""
    low, high = (math.log10(limit) for limit in limits)
    digits = next(steps for width, *steps in STEPS if high - low < width)
    powers = range(math.floor(low), math.ceil(high) + 1)
    values = (digit * 10.0**power for power in powers for digit in digits)
    return [value for value in values if limits[0] <= value <= limits[1]]


def subtitle_of(results: Results) -> str:
    """Machine, date and bundle, as the line below a figure's title."""
    machine = results.machine
    return f"{machine.cpu}, {machine.cores:g} cores · {results.made[:10]} · bundle {results.bundle_id}"
