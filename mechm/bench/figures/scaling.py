"""How cost grows: with the utterances of a conversation, their length, turns, and with callers and sessions at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mechm.bench.figures.axes import DASHES, LogAxes, around, below_title
from mechm.bench.results import Results
from mechm.evaluation.figures.sheet import sheet, text

Series = Mapping[str, Sequence[tuple[float, float]]]


def draw_utterances(results: Results) -> str:
    """Milliseconds against utterances."""
    series = {one.system: [(point.x, point.ms) for point in one.utterances] for one in results.scaling}
    return draw_series(results, series, "Longer conversations", "utterances", "milliseconds a conversation")


def draw_seconds(results: Results) -> str:
    """Milliseconds against the length of an utterance."""
    series = {one.system: [(point.x, point.ms) for point in one.seconds] for one in results.scaling if one.seconds}
    return draw_series(results, series, "Longer utterances", "seconds an utterance", "milliseconds a conversation")


def draw_callers(results: Results) -> str:
    """Throughput against callers."""
    series = {one.system: [(point.x, point.per_s) for point in one.callers] for one in results.scaling}
    return draw_series(results, series, "More callers at once", "callers", "conversations a second, of all callers")


def draw_turns(results: Results) -> str:
    """Milliseconds of each utterance of a session against its turn."""
    series = {
        name: list(enumerate(newest.latency.samples_ms, 1))
        for one in results.session
        for name, newest in ((one.system, one.whole), (f"{one.system}, streamed in", one.streamed))
        if newest is not None
    }
    return draw_series(results, series, "The newest utterance of a session", "turn", "milliseconds after its end")


def draw_sessions(results: Results) -> str:
    """Throughput against sessions."""
    series = {one.system: [(at.n_sessions, at.utterances_per_s) for at in one.together] for one in results.session}
    return draw_series(results, series, "More sessions at once", "sessions", "utterances a second, of all sessions")


def draw_series(results: Results, series: Series, title: str, x_name: str, y_name: str) -> str:
    """Lines through points on two logarithmic axes, as an SVG document."""
    points = [point for line in series.values() for point in line]
    legend_height = 20.0 * len(series)
    axes = LogAxes(around([x for x, _ in points]), around([y for _, y in points]), height=320.0)
    described = (
        f"{name}: " + ", ".join(f"{y:,.4g} at {x:g}" for x, y in line) for name, line in series.items() if line
    )
    return sheet(
        below_title(results),
        title,
        f"{y_name} by {x_name}. " + ". ".join(described),
        axes.bottom + 60 + legend_height,
        _drawing(axes, series, x_name, y_name),
    )


def _drawing(axes: LogAxes, series: Series, x_name: str, y_name: str) -> Iterator[str]:
    yield from axes.axes(x_name, y_name)
    for number, (name, line) in enumerate(series.items()):
        colour, dash = ("one", "two")[number % 2], DASHES[number // 2 % len(DASHES)]
        yield axes.path(line, colour, dash)
        for point in line:
            x, y = axes.at(*point)
            yield f'<circle class="dot-{colour}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        y = axes.bottom + 68 + 20 * number
        dashed = f"stroke-dasharray:{dash or 'none'}"
        yield f'<path class="{colour}" style="{dashed}" d="M{axes.left:.1f} {y - 4:.1f}h34"/>'
        yield text(axes.left + 44, y, name)
