"""The report: one self-contained HTML page that shows the emotions and causes of conversations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mechm_runtime.errors import InputError
from mechm_runtime.output.report.page import render
from mechm_runtime.output.writers import write_bytes
from mechm_runtime.types import Analysis

__all__ = ["render_report", "write_report"]


def render_report(analyses: Sequence[Analysis], *, title: str, terms: str = "") -> str:
    """Render the page as HTML text: one section per conversation, and an index of several.

    terms: what the weights may be used for (`Pipeline.terms_of_use`), shown at the foot.

    Raises: InputError: there is no analysis to show.
    """
    if not analyses:
        raise InputError("there is no conversation to report on")
    return render(analyses, title, terms)


def write_report(analyses: Sequence[Analysis], path: Path, *, title: str, terms: str = "") -> None:
    """Render the page and write it to a file atomically; see `render_report`.

    Raises: InputError: there is no analysis to show, or the file cannot be written.
    """
    write_bytes(path, render_report(analyses, title=title, terms=terms).encode("utf-8"))
