"""Figures of the results: SVG files that stand alone, for light and dark pages, each with a description in words.

They need matplotlib (`pip install 'mechm[bench]'`), which is imported when one is drawn.
"""

from __future__ import annotations

from pathlib import Path

from mechm.bench.figures.latency import draw_latency
from mechm.bench.figures.roofline import draw_roofline
from mechm.bench.figures.scaling import draw_callers, draw_seconds, draw_sessions, draw_turns, draw_utterances
from mechm.bench.results import Results
from mechm_runtime.output.writers import write_bytes

__all__ = ["write_figures"]


def write_figures(results: Results, folder: Path) -> list[Path]:
    """Write a figure for each part of the results that has one, into an existing folder.

    Returns: the files.
    Raises: MissingExtraError: matplotlib is not installed. InputError: a file cannot be written.
    """
    drawings = {}
    if results.single_stream is not None:
        drawings["latency"] = draw_latency(results, results.single_stream)
    if results.scaling:
        drawings["utterances"] = draw_utterances(results)
        drawings["callers"] = draw_callers(results)
        if any(one.seconds for one in results.scaling):
            drawings["seconds"] = draw_seconds(results)
    if results.session:
        drawings["turns"] = draw_turns(results)
        drawings["sessions"] = draw_sessions(results)
    if results.limits is not None and results.stages:
        drawings["roofline"] = draw_roofline(results, results.limits)
    paths = []
    for name, drawing in drawings.items():
        path = folder / f"{results.file_stem}-{name}.svg"
        write_bytes(path, drawing.encode())
        paths.append(path)
    return paths
