"""The confusion matrix of emotions: a row an annotated emotion, darker the larger its share of the row."""

from __future__ import annotations

from collections.abc import Iterator

from mechm.evaluation.figures.sheet import HEADER, WIDTH, sheet, subtitle_of, text
from mechm.evaluation.report import ScoreReport
from mechm.evaluation.scorer import EmotionScores
from mechm_runtime.output.formatting import percent
from mechm_runtime.types import EMOTIONS

LEFT, TOP = 112.0, HEADER + 46.0
CELL_HEIGHT = 46.0
MAX_OPACITY = 0.75
"""Of a whole row in one cell: numbers stay readable on it, see `sheet`."""


def draw_confusion(report: ScoreReport, emotions: EmotionScores) -> str:
    """The matrix as an SVG document; abstentions have a column of their own where there are any."""
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
    return sheet(
        subtitle_of(report),
        f"Emotions, annotated and found: {emotions.accuracy:.1%} right",
        ". ".join(described),
        TOP + CELL_HEIGHT * len(EMOTIONS) + 18,
        _cells(rows, columns),
    )


def _cells(rows: list[list[int]], columns: list[str]) -> Iterator[str]:
    width = (WIDTH - LEFT - 20) / len(columns)
    yield text(LEFT - 10, TOP - 28, "annotated", "soft end small")
    yield text(LEFT + width * len(columns) / 2, TOP - 28, "found", "soft middle small")
    for j, column in enumerate(columns):
        yield text(LEFT + width * (j + 0.5), TOP - 9, column, "middle")
    for i, (emotion, row) in enumerate(zip(EMOTIONS, rows, strict=True)):
        y, total = TOP + CELL_HEIGHT * i, sum(row)
        yield text(LEFT - 10, y + 21, emotion, "end")
        yield text(LEFT - 10, y + 36, f"{total:,}", "soft end small")
        for j, n in enumerate(row):
            x, share = LEFT + width * j, n / total if total else 0.0
            size = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{CELL_HEIGHT:g}"'
            yield f'<rect class="cell" {size} fill-opacity="{MAX_OPACITY * share:.3f}"/><rect class="grid" {size}/>'
            yield text(x + width / 2, y + 21, f"{n:,}", "middle strong" if columns[j] == emotion else "middle")
            if n:
                yield text(x + width / 2, y + 36, percent(share), "middle small")
