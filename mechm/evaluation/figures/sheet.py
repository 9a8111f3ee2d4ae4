"""The sheet that every figure is drawn on: size, title, colours for light and dark, and a plot's axes.

Colours carry no meaning alone: series differ in shape and dash, cells carry their numbers. Text has a contrast of at
least 4.5 to what lies behind it, in both themes (WCAG 2.2, level AA).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from mechm.evaluation.report import ScoreReport
from mechm_runtime.output.formatting import printable, shorten

WIDTH = 640
HEADER = 64
"""Pixels that the title and the line below it take."""

SUBTITLE_CHARACTERS = 92

STYLE = (
    ":root{--card:#fffefb;--ink:#1c2029;--soft:#5b6270;--line:#e2ddd2;--one:#1f5fd0;--two:#a8440b;--heat:#1f5fd0}"
    "@media (prefers-color-scheme:dark){:root{--card:#1d2027;--ink:#edeae3;--soft:#a3a9b5;--line:#3a3f4a;"
    "--one:#8ab4ff;--two:#ffb27d;--heat:#2f6bd6}}"
    "text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',Arial,sans-serif;fill:var(--ink)}"
    ".title{font-size:17px;font-weight:600}.soft{fill:var(--soft)}.small{font-size:11px}.strong{font-weight:600}"
    ".middle{text-anchor:middle}.end{text-anchor:end}.card{fill:var(--card)}.cell{fill:var(--heat)}"
    ".grid{stroke:var(--line);fill:none}.ideal{stroke:var(--soft);stroke-dasharray:2 4;fill:none}"
    ".one{stroke:var(--one);fill:none;stroke-width:2}.two{stroke:var(--two);fill:none;stroke-width:2;"
    "stroke-dasharray:7 4}.dot-one{fill:var(--one)}.dot-two{fill:var(--two)}"
)


def subtitle_of(report: ScoreReport) -> str:
    """What was scored on what, as the line below a figure's title."""
    system = f"{report.system} ({report.modalities})" if report.modalities else report.system
    return f"{report.gold} · {system}"


def sheet(below: str, title: str, description: str, height: float, body: Iterable[str]) -> str:
    """An SVG document.

    below: the line below the title, shortened to fit. title: what is drawn. description: what it shows, for who cannot
    see it. height: pixels, with the header.
    """
    subtitle = shorten(printable(below), SUBTITLE_CHARACTERS)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}" '
        f'viewBox="0 0 {WIDTH} {height:g}" role="img" aria-labelledby="title desc">\n'
        f'<title id="title">{escape(title)}: {escape(subtitle)}</title>\n'
        f'<desc id="desc">{escape(description)}</desc>\n'
        f"<style>{STYLE}</style>\n"
        f'<rect class="card" width="100%" height="100%"/>\n'
        f"{text(20, 30, title, 'title')}\n{text(20, 51, subtitle, 'soft')}\n" + "\n".join(body) + "\n</svg>\n"
    )


def text(x: float, y: float, words: str, style: str = "") -> str:
    """A line of text; y is its base line."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}">{escape(words)}</text>'


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """A rectangle between axes, in pixels."""

    left: float = 72.0
    top: float = HEADER + 12.0
    width: float = WIDTH - 72.0 - 28.0
    height: float = 360.0

    @property
    def bottom(self) -> float:
        """The x axis."""
        return self.top + self.height

    def names(self, x_name: str, y_name: str) -> Iterable[str]:
        """The axes' names."""
        yield text(self.left + self.width / 2, self.bottom + 42, x_name, "middle")
        turned = f'transform="translate(20 {self.top + self.height / 2:.1f}) rotate(-90)"'
        yield f'<text class="middle" {turned}>{escape(y_name)}</text>'


@dataclass(frozen=True, slots=True)
class Plot(Area):
    """Axes of shares, x from 0 to 1 and y from 0 to `y_max`."""

    y_max: float = 1.0
    y_step: float = 0.2

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a value is drawn."""
        return self.left + x * self.width, self.bottom - y / self.y_max * self.height

    def path(self, points: Iterable[tuple[float, float]], style: str) -> str:
        """A line through values."""
        steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in points))
        return f'<polyline class="{style}" points="{steps}"/>'

    def axes(self, x_name: str, y_name: str) -> Iterable[str]:
        """Lines with their values, and the axes' names."""
        for fifth in range(6):
            x, _ = self.at(fifth / 5, 0)
            yield f'<path class="grid" d="M{x:.1f} {self.top:.1f}V{self.bottom:.1f}"/>'
            yield text(x, self.bottom + 19, f"{fifth / 5:.0%}", "soft middle")
        for step in range(round(self.y_max / self.y_step) + 1):
            _, y = self.at(0, step * self.y_step)
            yield f'<path class="grid" d="M{self.left:.1f} {y:.1f}h{self.width:.1f}"/>'
            yield text(self.left - 8, y + 4, f"{step * self.y_step:.0%}", "soft end")
        yield from self.names(x_name, y_name)
