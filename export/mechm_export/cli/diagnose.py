"""`mechm export diagnose`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mechm_export.cli.options import (
    bundle_option,
    conversations_option,
    read_check_set,
    recordings_option,
    require_packages,
)

if TYPE_CHECKING:
    from mechm_export.precision.lower import LowerPrecision


@click.command()
@bundle_option
@click.option("--part", metavar="NAME", help="The part of the bundle to diagnose.")
@click.option(
    "--model",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="An ONNX file to diagnose instead of a part, in fp32 and with its weights inside; needs --inputs.",
)
@click.option(
    "--inputs",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    metavar="NPZ",
    help="Real inputs of --model, one array per input, by name; may be given several times.",
)
@click.option(
    "--min-cosine",
    type=click.FloatRange(0, 1),
    default=0.99,
    show_default=True,
    help="The lowest cosine of an output with the one in fp32 with which --model passes.",
)
@click.option(
    "--precision", type=click.Choice(["int8", "fp16", "bf16"]), required=True, help="The precision that fails."
)
@conversations_option
@recordings_option
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write all layers there.")
@click.option("--write", type=click.Path(path_type=Path), metavar="FILE", help="Write the layers to keep, for --keep.")
def diagnose(
    folder: Path | None,
    part: str | None,
    model: Path | None,
    inputs: tuple[Path, ...],
    min_cosine: float,
    precision: LowerPrecision,
    conversations: Path | None,
    recordings: tuple[tuple[Path, Path], ...],
    json_file: Path | None,
    write: Path | None,
) -> None:
    """Find the layers that make fp16, bf16 or int8 fail, and the fewest that have to stay in fp32.

    Each layer is lowered alone on real inputs, rounded as a GPU rounds; int8 is the static form, which TensorRT reads.
    Then the worst layers are kept in fp32 until the answers pass the gate. The command only proposes.

    \b
    mechm export diagnose --bundle bundle --part text --precision int8 --write text-int8.json
    mechm export diagnose --model encoder.onnx --inputs batch.npz --precision fp16
    """
    require_packages()
    from mechm.cli.options.progress import steps_progress
    from mechm_export.diagnose.report import print_diagnosis
    from mechm_export.diagnose.run import diagnose_file, diagnose_part
    from mechm_export.gate.check_set import shipped_check_set
    from mechm_runtime.bundle.location import default_bundle_path
    from mechm_runtime.system.atomic_write import write_atomically

    if (model is None) == (part is None):
        raise click.UsageError("give either --part, of a bundle, or --model")
    if model is not None and (not inputs or folder or conversations or recordings or write):
        raise click.UsageError("--model takes --inputs, and no bundle, conversations or --write")
    if model is None and inputs:
        raise click.UsageError("--inputs are for --model; a bundle's part is fed with --conversations")
    with steps_progress() as on_progress:
        if model is not None:
            found = diagnose_file(model, precision, inputs, min_cosine, on_progress)
        elif part is not None:
            checks = read_check_set(conversations, recordings) or shipped_check_set()
            found = diagnose_part(folder or default_bundle_path(), part, precision, checks, on_progress)
    print_diagnosis(found)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(json_file, found.to_json())
        click.echo(f"wrote {json_file}")
    if write is not None and found.diagnosis.solved:
        found.write_kept(write)
        click.echo(f"wrote {write}")
