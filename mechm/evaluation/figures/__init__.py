"""Figures of a score report: SVG files that stand alone, for light and dark pages, each with a description in words.

They need matplotlib (`pip install 'mechm[bench]'`), which is imported when one is drawn.
"""

from __future__ import annotations

from pathlib import Path

from mechm.evaluation.figures.confusion import draw_confusion
from mechm.evaluation.figures.reliability import draw_reliability
from mechm.evaluation.figures.risk_coverage import draw_risk_coverage
from mechm.evaluation.figures.style import require_matplotlib
from mechm.evaluation.report import ScoreReport
from mechm_runtime.errors import InputError
from mechm_runtime.output.writers import write_bytes

__all__ = ["draw_confusion", "draw_reliability", "draw_risk_coverage", "require_matplotlib", "write_figures"]


def write_figures(report: ScoreReport, folder: Path) -> list[Path]:
    """Write a figure for each part of the report that has one; the folder is made where it is missing.

    Returns: the files; none for the report of a submission.
    Raises: MissingExtraError: matplotlib is not installed. InputError: the folder or a file cannot be written.
    """
    drawings = {}
    if report.emotions is not None:
        drawings["confusion.svg"] = draw_confusion(report, report.emotions)
    if report.risk_coverage is not None:
        drawings["risk_coverage.svg"] = draw_risk_coverage(report, report.risk_coverage)
    if report.calibration is not None:
        drawings["reliability.svg"] = draw_reliability(report, report.calibration)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {folder}: {error.strerror or error}") from error
    for name, drawing in drawings.items():
        write_bytes(folder / name, drawing.encode())
    return [folder / name for name in drawings]
