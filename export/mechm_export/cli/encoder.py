"""`mechm export encoder`: one encoder to ONNX, outside a bundle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mechm_export.cli.options import require_packages

if TYPE_CHECKING:
    from mechm_export.encoders.architectures import Modality, Task
    from mechm_export.encoders.axes import Precision
    from mechm_export.encoders.report import EncoderReport
    from mechm_runtime.types import Conversation

TASKS = (
    "feature-extraction",
    "sentence-embedding",
    "image-embedding",
    "audio-embedding",
    "text-classification",
    "image-classification",
    "audio-classification",
)
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@click.command()
@click.option("--model", metavar="DIR_OR_ID", help="A folder in the Hugging Face layout, or a hub id.")
@click.option(
    "--from-onnx",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="A graph that optimum-cli or others wrote, to check and to convert; instead of --model.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="A folder that is not there."
)
@click.option(
    "--task",
    type=click.Choice(TASKS),
    help="feature-extraction: one state per token, patch or frame. *-embedding: one vector per input (sentences as the "
    "folder's modules.json says, else the mean). *-classification: the logits of the trained head, with its labels in "
    "the graph. Default: the vector.",
)
@click.option(
    "--modality", type=click.Choice(["text", "vision"]), help="Which encoder of a CLIP or SigLIP that has both."
)
@click.option("--revision", metavar="REF", help="Branch, tag or commit of the hub's repository.")
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(PRECISIONS),
    multiple=True,
    default=("fp32",),
    show_default=True,
    help="May be given several times. fp16 and bf16: float32 inputs and outputs, norms and softmax; for GPUs and "
    "OpenVINO, since onnxruntime on CPU computes fp16 in fp32 and has no bf16. int8: for onnxruntime on CPU.",
)
@click.option(
    "--opset",
    type=int,
    help="18 to 23; bf16 needs 22. Default: 18; for bf16 22; for int8 23, which it is fastest with.",
)
@click.option(
    "--axes",
    metavar="NAMES",
    help="Dynamic axes, and sizes of fixed ones: batch,time or batch=1,height=448. Text has tokens, speech samples or "
    "frames (time means either), images height and width, which are always fixed. Default: all that can be dynamic. "
    "With --from-onnx: sizes to try.",
)
@click.option(
    "--conversations",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Conversations that int8 of a text encoder is calibrated and judged on. Default: a shipped set.",
)
@click.option("--accept-quality-loss", is_flag=True, help="Write precisions that differ too much, too.")
def encoder(
    model: str | None,
    from_onnx: Path | None,
    out: Path,
    task: Task | None,
    modality: Modality | None,
    revision: str | None,
    precisions: tuple[Precision, ...],
    opset: int | None,
    axes: str | None,
    conversations: Path | None,
    accept_quality_loss: bool,
) -> None:
    """Export one encoder to ONNX and check every precision against torch.

    Text: BERT, RoBERTa, MPNet, DeBERTa, ModernBERT and others. Images: CLIP, SigLIP, DINOv2, DINOv3, ViT, EVA-CLIP
    ViT-g/14 and others. Speech, whose padded batches answer as single inputs do: HuBERT, wav2vec2, WavLM, w2v-BERT,
    Whisper's encoder and others. "Others" are the encoders and *Classification models of transformers that optimum has
    a task and a dummy input for.

    A precision whose lowest cosine is below 0.999 (int8: 0.99) is left out, with exit code 1. encoder.json in --out
    says what was measured, and names every weight of the checkpoint that is in no graph.

    \b
    mechm export encoder --model bert-folder --precision fp32 --precision int8 --out out
    mechm export encoder --model openai/clip-vit-base-patch32 --task image-embedding --out out
    mechm export encoder --model hubert-folder --task feature-extraction --axes batch=1,time --out out
    mechm export encoder --model emotion-roberta --task text-classification --out out
    mechm export encoder --from-onnx exported-folder --precision int8 --out out
    """
    require_packages()
    from mechm.cli.options.progress import steps_progress
    from mechm_export.encoders.axes import parse_axes
    from mechm_export.encoders.export import convert_graph, export_encoder
    from mechm_runtime.errors import InputError, VerificationError

    if (model is None) == (from_onnx is None):
        raise InputError("one of --model and --from-onnx is needed", hint="mechm export encoder --help")
    wanted = parse_axes(axes)
    sentences = _conversations(conversations) if "int8" in precisions else ()
    with steps_progress() as on_progress:
        if model is not None:
            report = export_encoder(
                model,
                out,
                task=task,
                modality=modality,
                revision=revision,
                precisions=precisions,
                axes=wanted,
                opset=opset,
                conversations=sentences,
                accept_quality_loss=accept_quality_loss,
                on_progress=on_progress,
            )
        else:
            given = {"--task": task, "--modality": modality, "--revision": revision, "--opset": opset}
            if stray := [name for name, value in given.items() if value is not None]:
                raise InputError(f"{stray[0]} is for --model: a graph has its own", hint=f"leave {stray[0]} out")
            report = convert_graph(
                from_onnx or Path(),
                out,
                precisions=precisions,
                axes=wanted,
                conversations=sentences,
                accept_quality_loss=accept_quality_loss,
                on_progress=on_progress,
            )
    _print(report)
    click.echo(f"wrote {out}")
    if report.refused:
        raise VerificationError(
            "left out: " + "; ".join(f"{precision}: {problem}" for precision, problem in report.refused.items()),
            hint="--accept-quality-loss writes it all the same",
        )


def _conversations(path: Path | None) -> tuple[Conversation, ...]:
    from mechm_export.check_data import check_conversations
    from mechm_runtime.readers import read_labelled

    return tuple(one.conversation for one in (check_conversations() if path is None else read_labelled(path)))


def _print(report: EncoderReport) -> None:
    from rich.console import Console
    from rich.table import Table

    from mechm_export.encoders.checkpoint import left_out_lines

    table = Table(title=f"{report.architecture}, {report.task}")
    for heading in ("precision", "opset", "MB", "s", "largest difference", "lowest cosine", "padded - single"):
        table.add_column(heading, justify="left" if heading == "precision" else "right")
    for graph in report.graphs:
        check = graph.check
        table.add_row(
            f"{graph.precision} (loss accepted)" if graph.loss_accepted else graph.precision,
            str(graph.opset),
            f"{graph.size_bytes / 1e6:.1f}",
            f"{graph.export_s:.1f}",
            f"{check.largest_difference:.1e}",
            f"{check.cosine:.5f}",
            "" if check.padding_difference is None else f"{check.padding_difference:.1e}",
        )
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(table)
    for direction, tensors in (("input", report.part.inputs), ("output", report.part.outputs)):
        for tensor in tensors:
            axes = ", ".join(map(str, tensor.axes))
            console.print(f"{direction} {tensor.name}: {tensor.dtype} ({axes})", highlight=False, soft_wrap=True)
    if report.labels:
        console.print(f"labels: {', '.join(report.labels)}", highlight=False, markup=False, soft_wrap=True)
    for line in left_out_lines(report.left_out):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if report.keeps_head:
        console.print(f"  --task {report.keeps_head} keeps the classification head", highlight=False, soft_wrap=True)
