"""The report: one self-contained HTML page on which a conversation's emotions and causes can be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mechm_runtime.errors import InputError
from mechm_runtime.output.report.page import render
from mechm_runtime.output.writers import write_bytes
from mechm_runtime.types import Analysis

__all__ = ["render_report", "write_report"]


def render_report(analyses: Sequence[Analysis], *, title: str) -> str:
    """The page as HTML text: a section a conversation, and a list of them where there are many.

    Raises: InputError: there is no analysis to show.
    """
    if not analyses:
        raise InputError("there is no conversation to report on")
    return render(analyses, title)


def write_report(analyses: Sequence[Analysis], path: Path, *, title: str) -> None:
    """Write the page to a file, all of it or nothing.

    Raises: InputError: there is no analysis to show, or the file cannot be written.
    """
    write_bytes(path, render_report(analyses, title=title).encode("utf-8"))
