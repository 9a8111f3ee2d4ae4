"""`mechm export bundle`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mechm.cli.options.renamed import RenamedOptions
from mechm_export.cli.options import (
    conversations_option,
    find_adapter,
    find_trained,
    read_check_set,
    recordings_option,
    require_packages,
    steps_display,
    weights_options,
)

if TYPE_CHECKING:
    from mechm_export.bundle.write import Target

PRESETS = ("small", "tiny", "llama2-7b")


@click.command(cls=RenamedOptions, renamed={"--target": "--engine", "--llm": "--adapter"})
@click.option("--preset", type=click.Choice(PRESETS), default="small", show_default=True, help="Which model.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The bundle's folder.")
@weights_options
@conversations_option
@recordings_option
@click.option(
    "--engine",
    "targets",
    type=click.Choice(["onnxruntime", "onnxruntime-gpu", "openvino"]),
    multiple=True,
    default=("onnxruntime",),
    show_default=True,
    help="An engine that the bundle is for; may be given several times. openvino adds int8 graphs in plain ONNX (w8), "
    "which change fewer answers than onnxruntime's int8: mechm analyze --engine openvino. Its audio and picture "
    "encoders are calibrated on the recordings, or on a shipped one. onnxruntime-gpu adds fp16 for NVIDIA GPUs, and "
    "bf16 where fp16 overflows or changes answers: mechm analyze --engine onnxruntime-gpu. The export needs no GPU.",
)
@click.option(
    "--keep",
    "keeps",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    metavar="FILE",
    help="Layers of a part to leave in fp32 in onnxruntime's int8, as proposed by mechm export diagnose --precision "
    "int8 --write; may be given several times.",
)
@click.option(
    "--accept-quality-loss",
    is_flag=True,
    help="Also write precisions that change too many answers; the bundle states which, and what they change.",
)
@click.option(
    "--split",
    is_flag=True,
    help="Write only what the one --engine runs by default; mechm bundle split has more choices.",
)
def bundle(
    preset: str,
    out: Path,
    trained: Path | None,
    adapter: str | None,
    llm_base: Path | None,
    conversations: Path | None,
    recordings: tuple[tuple[Path, Path], ...],
    targets: tuple[Target, ...],
    keeps: tuple[Path, ...],
    accept_quality_loss: bool,
    split: bool,
) -> None:
    """Export a preset in fp32 and lower precisions, and check every part against torch.

    A part's int8 form, its w8 form for openvino, and its 16-bit form for onnxruntime-gpu are kept where the answers
    stay the same (99 % of the labels, F1 within 0.005) and left out otherwise. An existing bundle is replaced only once
    the new one is complete. --split, or later mechm bundle split, keeps only what one deployment needs.

    \b
    mechm export bundle --preset small --out bundle
    mechm export bundle --out bundle --engine onnxruntime --engine openvino
    mechm export bundle --out bundle --engine onnxruntime-gpu
    mechm export bundle --out edge --engine openvino --split
    mechm export bundle --out bundle --keep keep.json
    mechm export bundle --out bundle --trained runs/mine --conversations dev.txt --recording call.wav call.stm
    """
    require_packages()
    from mechm_export.bundle.licences import terms_of_weights
    from mechm_export.bundle.report import print_report
    from mechm_export.bundle.write import export_bundle, require_targets
    from mechm_export.diagnose.proposal import read_int8_proposals
    from mechm_runtime.bundle.staging import check_target
    from mechm_runtime.bundle.terms import OWN_DATA_PAGE

    if split and len(targets) != 1:
        raise click.UsageError("--split is for one --engine")
    check_target(out)
    require_targets(targets)
    keep = read_int8_proposals(keeps)
    check_set = read_check_set(conversations, recordings)
    trained = find_trained(preset, trained)
    if terms := terms_of_weights(trained, find_adapter(trained, adapter)):
        click.echo(f"{terms} To train on your own data: {OWN_DATA_PAGE}")
    with steps_display() as on_step:
        report = export_bundle(
            preset,
            out,
            trained=trained,
            adapter=find_adapter(trained, adapter),
            llm_base=llm_base,
            check_set=check_set,
            targets=targets,
            keep=keep,
            accept_quality_loss=accept_quality_loss,
            split=split,
            on_step=on_step,
        )
    print_report(report)
    click.echo(f"wrote {out} ({report.bundle.id})")
