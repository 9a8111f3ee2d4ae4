"""`mechm export engines`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mechm.cli.options.renamed import RenamedOptions
from mechm_export.cli.options import (
    bundle_option,
    bundle_to_change,
    conversations_option,
    read_check_set,
    recordings_option,
    require_packages,
)

if TYPE_CHECKING:
    from mechm_runtime.bundle.engine_file import EnginePrecision
    from mechm_runtime.engines.tensorrt.library import LibraryName


@click.command(cls=RenamedOptions, renamed={"--target": "--engine"})
@bundle_option
@click.option(
    "--engine",
    "library",
    type=click.Choice(["tensorrt-rtx", "tensorrt"]),
    default="tensorrt-rtx",
    show_default=True,
    help="tensorrt-rtx builds on any machine, for GeForce and RTX GPUs; tensorrt on the GPU that the engines are for.",
)
@click.option(
    "--part", "parts", multiple=True, metavar="NAME", help="A part to build; may be given several times. Default: all."
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
    default="fp16",
    show_default=True,
    help="Of linear layers, convolutions and element-wise operators; norms, softmax and sums stay in fp32.",
)
@click.option(
    "--sm",
    "capabilities",
    multiple=True,
    metavar="CC",
    help="A compute capability to build for, as in 86 or 89; may be given several times. Default: all from 80 on that "
    "the library knows, or the GPU's own.",
)
@conversations_option
@recordings_option
@click.option(
    "--keep",
    "keeps",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    metavar="FILE",
    help="Layers to leave in fp32, as written by mechm export diagnose --write; may be given several times.",
)
@click.option(
    "--accept-quality-loss", is_flag=True, help="Also build parts that change too many answers; the bundle states so."
)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Engines built at once.")
def engines(
    folder: Path | None,
    library: LibraryName,
    parts: tuple[str, ...],
    precision: EnginePrecision,
    capabilities: tuple[str, ...],
    conversations: Path | None,
    recordings: tuple[tuple[Path, Path], ...],
    keeps: tuple[Path, ...],
    accept_quality_loss: bool,
    jobs: int,
) -> None:
    """Add TensorRT engines to a bundle, beside the ONNX from which other machines build theirs.

    A part below fp32 is calibrated on the conversations, and left out where it changes too many answers compared with
    the same bundle in fp32. An interrupted run continues where it stopped.

    \b
    mechm export engines --bundle bundle --sm 89 --part text --part fusion
    mechm export engines --bundle bundle --precision int8 --part text --keep text-int8.json
    """
    require_packages()
    from mechm.cli.options.progress import steps_progress
    from mechm_export.diagnose.run import read_fp32_layers
    from mechm_export.gate.check_set import shipped_check_set
    from mechm_export.tensorrt.engines import EngineSettings, add_engines
    from mechm_export.tensorrt.report import print_engines
    from mechm_runtime.bundle.open import open_bundle
    from mechm_runtime.engines.tensorrt.library import load_library

    load_library(library)  # before anything that takes time
    folder = bundle_to_change(folder)
    checks = read_check_set(conversations, recordings) or shipped_check_set()
    fp32_nodes = read_fp32_layers(folder, precision, keeps)
    settings = EngineSettings(library, precision, parts, capabilities, fp32_nodes, accept_quality_loss, jobs)
    with steps_progress() as on_progress:
        report = add_engines(folder, settings, checks, on_progress)
    bundle = open_bundle(folder, check_hashes=False)
    print_engines(report, bundle)
    click.echo(f"built {report.built}; the bundle is {bundle.id}")
