"""The results in pictures: SVG files that stand alone, in light and dark, and say what they show in words too."""

from __future__ import annotations

from pathlib import Path

from mechm.bench.figures.latency import draw_latency
from mechm.bench.figures.roofline import draw_roofline
from mechm.bench.figures.scaling import draw_callers, draw_seconds, draw_sessions, draw_turns, draw_utterances
from mechm.bench.results import Results
from mechm_runtime.output.writers import write_bytes

__all__ = ["write_figures"]


def write_figures(results: Results, folder: Path) -> list[Path]:
    """Write a picture for each part of the results that has one, into a folder that is there.

    Returns: the files.
    Raises: InputError: a file cannot be written.
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
