"""The confusion matrix of emotions: one row per annotated emotion, a cell darker the larger its share of the row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mechm.evaluation.figures.style import HEADER, LIGHT, WIDTH, add_axes, figure_style, fitted, new_figure, subtitle_of
from mechm.evaluation.figures.svg import to_svg
from mechm.evaluation.report import ScoreReport
from mechm.evaluation.scorer import EmotionScores
from mechm_runtime.output.formatting import percent
from mechm_runtime.types import EMOTIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEFT, TOP = 112.0, HEADER + 46.0
CELL_HEIGHT = 46.0
MAX_OPACITY = 0.75
"""Of a cell that holds its whole row: numbers stay readable on it, see `style`."""


def draw_confusion(report: ScoreReport, emotions: EmotionScores) -> str:
    """The matrix as an SVG document; abstentions have a column of their own where there are any.

    Raises: MissingExtraError: matplotlib is not installed.
    """
    rows = [list(row) for row in emotions.confusion]
    columns = list(EMOTIONS)
    if any(emotions.abstained):
        columns.append("abstained")
        for row, n_abstained in zip(rows, emotions.abstained, strict=True):
            row.append(n_abstained)
    described = (
        f"{emotion}, {sum(row):,} annotated: "
        + ", ".join(f"{n:,} {column}" for n, column in zip(row, columns, strict=True) if n)
        for emotion, row in zip(EMOTIONS, rows, strict=True)
        if sum(row)
    )
    title, subtitle = f"Emotions, annotated and found: {emotions.accuracy:.1%} right", subtitle_of(report)
    height = CELL_HEIGHT * len(EMOTIONS)
    with figure_style():
        figure = new_figure(title, subtitle, TOP + height + 18)
        axes = add_axes(figure, left=LEFT, top=TOP, width=WIDTH - LEFT - 20, height=height)
        _draw_cells(axes, rows, columns)
        return to_svg(figure, f"{title}: {fitted(subtitle)}", ". ".join(described))


def _draw_cells(axes: Axes, rows: list[list[int]], columns: list[str]) -> None:
    """Cells, counts and headings; one unit of the axes is a column's width and a pixel's height, y grows downwards."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    axes.set(xlim=(0, len(columns)), ylim=(CELL_HEIGHT * len(rows), 0))
    axes.set_axis_off()
    edge = 10 * len(columns) / (WIDTH - LEFT - 20)  # ten pixels
    small: dict[str, Any] = {"fontsize": 11, "color": LIGHT["soft"]}
    axes.text(-edge, -28, "annotated", ha="right", **small)
    axes.text(len(columns) / 2, -28, "found", ha="center", **small)
    for j, column in enumerate(columns):
        axes.text(j + 0.5, -9, column, ha="center")
    for i, (emotion, row) in enumerate(zip(EMOTIONS, rows, strict=True)):
        y, total = CELL_HEIGHT * i, sum(row)
        axes.text(-edge, y + 21, emotion, ha="right")
        axes.text(-edge, y + 36, f"{total:,}", ha="right", **small)
        for j, n in enumerate(row):
            shade = to_rgba(LIGHT["heat"], MAX_OPACITY * n / total if total else 0.0)
            cell = Rectangle((j, y), 1, CELL_HEIGHT, facecolor=shade, edgecolor=LIGHT["line"], clip_on=False)
            cell.set_gid(f"cell-{emotion}-{columns[j]}")
            axes.add_patch(cell)
            weight = "bold" if columns[j] == emotion else "normal"
            axes.text(j + 0.5, y + 21, f"{n:,}", ha="center", fontweight=weight)
            if n:
                axes.text(j + 0.5, y + 36, percent(n / total), ha="center", fontsize=11)
