"""The look of every figure of the project: size, fonts, and colours for light and dark pages.

Figures are matplotlib objects: nothing here uses pyplot or chooses a backend, and matplotlib's settings are as they
were once `figure_style` is left. Colours carry no meaning alone: series differ in marker and dash, cells carry their
numbers. The two series colours, blue and orange-brown, differ for every kind of colour blindness. Text has a contrast
of at least 4.5 to what lies behind it in both themes (WCAG 2.2, level AA).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mechm.evaluation.report import ScoreReport
from mechm_runtime.errors import MissingExtraError
from mechm_runtime.output.formatting import printable, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 640.0
"""Of every figure, in pixels. matplotlib is given 72 of them per inch, so that its points are pixels too."""
PIXELS_PER_INCH = 72
HEADER = 64.0
"""Pixels that the title and the line below it take."""
SUBTITLE_CHARACTERS = 92

LIGHT = {
    "card": "#fffefb",
    "ink": "#1c2029",
    "soft": "#5b6270",
    "line": "#e2ddd2",
    "one": "#1f5fd0",
    "two": "#a8440b",
    "heat": "#1f60d0",
}
"""Colour by role: background, text, secondary text, grid, the two series, cells. No two are equal: `to_svg` finds a
drawn colour's role by its value."""
DARK = {
    "card": "#1d2027",
    "ink": "#edeae3",
    "soft": "#a3a9b5",
    "line": "#3a3f4a",
    "one": "#8ab4ff",
    "two": "#ffb27d",
    "heat": "#2f6bd6",
}
"""The same roles on a page whose reader prefers dark."""

SETTINGS: dict[str, Any] = {
    "figure.dpi": PIXELS_PER_INCH,
    "figure.facecolor": LIGHT["card"],
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that a layout is the same on every machine
    "font.size": 13,
    "text.color": LIGHT["ink"],
    "text.parse_math": False,  # a file name may hold two dollar signs
    "axes.facecolor": "none",
    "axes.labelcolor": LIGHT["ink"],
    "axes.labelpad": 8,
    "axes.labelsize": 13,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.spines.bottom": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": LIGHT["line"],
    "grid.linewidth": 1,
    "xtick.color": LIGHT["soft"],
    "xtick.labelsize": 13,
    "xtick.major.size": 0,
    "xtick.major.pad": 9,
    "ytick.color": LIGHT["soft"],
    "ytick.labelsize": 13,
    "ytick.major.size": 0,
    "ytick.major.pad": 8,
    "lines.linewidth": 2,
    "lines.markersize": 8,
    "lines.markeredgewidth": 0,
    "lines.scale_dashes": False,
    "legend.frameon": False,
    "legend.fontsize": 13,
    "legend.handlelength": 2.6,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
    "legend.labelspacing": 0.5,
    "path.simplify": False,
    "svg.fonttype": "none",  # text stays text: it can be searched, copied and read aloud
    "svg.hashsalt": "mechm",  # equal figures have equal bytes
}

MARKERS = {"one": "o", "two": "s"}
DASHES: tuple[Any, ...] = ("-", (0, (7, 4)), (0, (2, 3)), (0, (10, 3, 2, 3)))
"""Line styles of matplotlib: series of one colour differ in their dashes."""


def require_matplotlib() -> None:
    """Find out before long work whether figures can be drawn.

    Raises: MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401 (only its absence counts)
    except ImportError as error:
        raise MissingExtraError("matplotlib", extra="bench") from error


@contextmanager
def figure_style() -> Iterator[None]:
    """The project's settings of matplotlib instead of the user's, while figures are drawn and written.

    Raises: MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib import style

    with style.context(SETTINGS, after_reset=True):
        yield


def new_figure(title: str, subtitle: str, height: float) -> Figure:
    """An empty figure with its two lines of heading, inside `figure_style`.

    subtitle: shortened to fit. height: pixels, with the heading.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / PIXELS_PER_INCH, height / PIXELS_PER_INCH), dpi=PIXELS_PER_INCH)
    figure.text(20 / WIDTH, 1 - 30 / height, title, fontsize=17, fontweight="bold")
    figure.text(20 / WIDTH, 1 - 51 / height, fitted(subtitle), color=LIGHT["soft"])
    return figure


def add_axes(
    figure: Figure,
    *,
    left: float = 72.0,
    top: float = HEADER + 12.0,
    width: float = WIDTH - 72.0 - 28.0,
    height: float = 360.0,
) -> Axes:
    """Axes in a rectangle that is given in pixels from the figure's left and top edge."""
    total = figure.get_figheight() * PIXELS_PER_INCH
    return figure.add_axes((left / WIDTH, 1 - (top + height) / total, width / WIDTH, height / total))


def fitted(subtitle: str) -> str:
    """The line below a title, printable and short enough for the figure's width."""
    return shorten(printable(subtitle), SUBTITLE_CHARACTERS)


def subtitle_of(report: ScoreReport) -> str:
    """The gold file and the system, as the line below the title of a report's figure."""
    system = f"{report.system} ({report.modalities})" if report.modalities else report.system
    return f"{report.gold} · {system}"
