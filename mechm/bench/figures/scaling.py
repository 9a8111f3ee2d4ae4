"""Cost against size: utterances per conversation, their length, turns, and callers and sessions at the same time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mechm.bench.figures.axes import padded_range, set_log_axis, subtitle_of
from mechm.bench.results import Results
from mechm.evaluation.figures.style import DASHES, HEADER, LIGHT, MARKERS, add_axes, figure_style, fitted, new_figure
from mechm.evaluation.figures.svg import to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Series = Mapping[str, Sequence[tuple[float, float]]]
"""Points (x, y) by the name that the legend shows."""

HEIGHT = 320.0


def draw_utterances(results: Results) -> str:
    """Milliseconds against utterances."""
    series = {one.system: [(point.x, point.ms) for point in one.utterances] for one in results.scaling}
    return draw_series(results, series, "Longer conversations", "utterances", "milliseconds per conversation")


def draw_seconds(results: Results) -> str:
    """Milliseconds against the length of an utterance."""
    series = {one.system: [(point.x, point.ms) for point in one.seconds] for one in results.scaling if one.seconds}
    return draw_series(results, series, "Longer utterances", "seconds per utterance", "milliseconds per conversation")


def draw_callers(results: Results) -> str:
    """Throughput against callers."""
    series = {one.system: [(point.x, point.per_s) for point in one.callers] for one in results.scaling}
    return draw_series(results, series, "Throughput with several callers", "callers", "conversations per second")


def draw_turns(results: Results) -> str:
    """Milliseconds of each utterance of a session against its turn."""
    series = {
        name: list(enumerate(newest.latency.samples_ms, 1))
        for one in results.session
        for name, newest in ((one.system, one.whole), (f"{one.system}, streamed in", one.streamed))
        if newest is not None
    }
    title = "Latency of the newest utterance of a session"
    return draw_series(results, series, title, "turn", "milliseconds after its end")


def draw_sessions(results: Results) -> str:
    """Throughput against sessions."""
    series = {one.system: [(at.n_sessions, at.utterances_per_s) for at in one.together] for one in results.session}
    return draw_series(results, series, "Throughput with several sessions", "sessions", "utterances per second")


def draw_series(results: Results, series: Series, title: str, x_name: str, y_name: str) -> str:
    """Lines through points on two logarithmic axes, as an SVG document.

    Raises: MissingExtraError: matplotlib is not installed.
    """
    described = (
        f"{name}: " + ", ".join(f"{y:,.4g} at {x:g}" for x, y in line) for name, line in series.items() if line
    )
    subtitle = subtitle_of(results)
    with figure_style():
        figure = new_figure(title, subtitle, HEADER + 12 + HEIGHT + 60 + 21 * len(series))
        axes = add_axes(figure, height=HEIGHT)
        axes.set(xlabel=x_name, ylabel=y_name)
        _draw_lines(axes, series)
        return to_svg(figure, f"{title}: {fitted(subtitle)}", f"{y_name} by {x_name}. " + ". ".join(described))


def _draw_lines(axes: Axes, series: Series) -> None:
    xs, ys = zip(*(point for line in series.values() for point in line), strict=True)
    set_log_axis(axes.xaxis, padded_range(xs), xs)
    set_log_axis(axes.yaxis, padded_range(ys))
    # Lines through more marks than can be told apart are clearer with small ones.
    size = 8 if max(map(len, series.values())) <= 20 else 4
    for number, (name, line) in enumerate(series.items()):
        role, dash = ("one", "two")[number % 2], DASHES[number // 2 % len(DASHES)]
        x, y = zip(*line, strict=True)
        axes.plot(x, y, color=LIGHT[role], linestyle=dash, marker=MARKERS[role], markersize=size, label=name)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -54 / HEIGHT))
