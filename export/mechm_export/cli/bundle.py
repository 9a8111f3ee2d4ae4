"""`mechm export`: bundle, diagnose, encoder, engines, llm and verify."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mechm.cli.merge import merge_options, merge_settings, print_merge
from mechm_export.cli.diagnose import diagnose
from mechm_export.cli.encoder import encoder
from mechm_export.cli.engines import engines
from mechm_export.cli.options import (
    BundleFolder,
    bundle_to_change,
    conversations_option,
    read_check_set,
    recordings_option,
    require_packages,
)

if TYPE_CHECKING:
    from rich.console import Console

    from mechm.llm.merge import DType
    from mechm_export.bundle.write import BundleReport, Step, Target
    from mechm_export.llama.compressed import SchemeName

PRESETS = ("small", "tiny", "llama2-7b")

_trained = click.option(
    "--trained",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="Weights that `mechm train fusion` wrote. Default: those shipped with the preset.",
)
_llm = click.option(
    "--llm",
    "adapter",
    metavar="DIR",
    help="The Llama's adapter that `mechm train llm` wrote and `mechm train combination` weighed against the fusion; "
    "`none` for no Llama. Default: the folder `llm` of the trained weights, where there is one.",
)
_llm_base = click.option(
    "--llm-base",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="The Llama that the adapter is for. Default: the preset's, see mechm weights.",
)


@click.group()
def export() -> None:
    """Turn weights into a verified bundle that the runtime serves."""


export.add_command(diagnose)
export.add_command(encoder)
export.add_command(engines)


@export.command()
@click.option("--preset", type=click.Choice(PRESETS), default="small", show_default=True, help="Which model.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The bundle's folder.")
@_trained
@_llm
@_llm_base
@conversations_option
@recordings_option
@click.option(
    "--target",
    "targets",
    type=click.Choice(["onnxruntime", "onnxruntime-gpu", "openvino"]),
    multiple=True,
    default=("onnxruntime",),
    show_default=True,
    help="An engine that the bundle is for; may be given several times. openvino adds int8 weights (w8), with "
    "which it answers closer to fp32 than onnxruntime in int8 does: mechm analyze --engine openvino. What is heard and "
    "seen is calibrated on the recordings, or on a shipped one. onnxruntime-gpu adds fp16 for NVIDIA GPUs, and bf16 "
    "where fp16 overflows or changes answers: mechm analyze --engine onnxruntime-gpu. No GPU is needed here.",
)
@click.option(
    "--keep",
    "keeps",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    metavar="FILE",
    help="Layers to leave in fp32 in onnxruntime's int8, as mechm export diagnose --precision int8 --write proposed "
    "them for a part; may be given several times.",
)
@click.option(
    "--accept-quality-loss",
    is_flag=True,
    help="Write precisions that change too many answers too; the bundle says which, and what they change.",
)
@click.option(
    "--split",
    is_flag=True,
    help="Write only what the one --target runs by itself, and nothing else; mechm bundle split has more choices.",
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
    """Export a preset in fp32 and below and check every part against torch.

    A part's int8 form, its w8 form for openvino, and its 16-bit form for onnxruntime-gpu are kept where the answers
    stay the same (99 % of the labels, F1 within 0.005) and left out otherwise. An existing bundle is replaced only once
    the new one is whole. --split, or later mechm bundle split, takes out of it what one deployment needs.

    \b
    mechm export bundle --preset small --out bundle
    mechm export bundle --out bundle --target onnxruntime --target openvino
    mechm export bundle --out bundle --target onnxruntime-gpu
    mechm export bundle --out edge --target openvino --split
    mechm export bundle --out bundle --keep keep.json
    mechm export bundle --out bundle --trained runs/mine --conversations dev.txt --recording call.wav call.stm
    """
    require_packages()
    from rich.console import Console

    from mechm_export.bundle.write import export_bundle, require_targets
    from mechm_export.deployment.split import Deployment, split_bundle
    from mechm_export.diagnose.proposal import read_int8_proposals
    from mechm_export.staging import check_target

    if split and len(targets) != 1:
        raise click.UsageError("--split is for one --target")
    check_target(out)
    require_targets(targets)
    keep = read_int8_proposals(keeps)
    check_set = read_check_set(conversations, recordings)
    console = Console(stderr=True)
    trained = _trained_folder(preset, trained)
    llama = _adapter_folder(trained, adapter)
    with _steps(console) as on_step, _whole_bundle(out, split=split) as whole:
        report = export_bundle(
            preset,
            whole,
            trained=trained,
            adapter=llama,
            llm_base=llm_base,
            check_set=check_set,
            targets=targets,
            keep=keep,
            accept_quality_loss=accept_quality_loss,
            on_step=on_step,
        )
        if split:
            on_step(f"taking out what {targets[0]} runs")
            report = replace(report, bundle=split_bundle(whole, out, Deployment(engine=targets[0])))
    _print(report)
    click.echo(f"wrote {out} ({report.bundle.id})")


@contextmanager
def _whole_bundle(out: Path, *, split: bool) -> Iterator[Path]:
    """Where the whole bundle goes: to its place, or beside it for as long as it is split."""
    if not split:
        yield out
        return
    from mechm_export.staging import written

    out = out.absolute()
    with written(out), tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        yield Path(folder) / "whole"


@export.command()
@click.option(
    "--bundle",
    "folder",
    type=BundleFolder(),
    metavar="DIR",
    help="The bundle to put it into, which has the Llama as a graph; with --compose one that has it already may be "
    "package:NAME, an installed one. Default: MECHM_BUNDLE, or what make demo built.",
)
@click.option(
    "--adapter",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="What the bundle's Llama was made from. Default: the adapter shipped with the bundle's preset.",
)
@merge_options
@click.option(
    "--quantize",
    "quantization",
    type=click.Choice(["int8", "fp8"]),
    help="Put its linear layers into 8 bits, and multiply in them: half the memory of bf16. int8 for CPUs and GPUs, "
    "fp8 for GPUs from Ada and Hopper on. Refused where answers change.",
)
@click.option(
    "--compose",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Also write compose.yaml and kubernetes.yaml there, which serve it with vLLM's official image. Of a bundle "
    "that has it already, only these are written.",
)
def llm(
    folder: Path | None,
    adapter: Path | None,
    base: Path | None,
    dtype: DType,
    conversations: Path | None,
    device: str | None,
    quantization: SchemeName | None,
    compose: Path | None,
) -> None:
    """Put the Llama into a bundle as vLLM loads it: merged, in the Hugging Face layout; `mechm serve llm` serves it.

    Nothing is written unless it answers as the base with its adapter does. It asks for 4 bytes of memory a parameter.

    \b
    mechm export llm --bundle bundle --adapter runs/llm
    mechm export llm --bundle bundle --adapter runs/llm --base Llama-2-7b-chat-hf --dtype fp16
    mechm export llm --bundle bundle --quantize int8
    mechm export llm --bundle bundle --compose deploy
    """
    require_packages()
    from mechm.cli.options.progress import steps_progress
    from mechm.weights import weights_path
    from mechm_export.vllm.deployment_files import check_deployment_target
    from mechm_export.vllm.served import SERVED_FOLDER, add_served_llama
    from mechm_runtime.bundle.location import default_bundle_path
    from mechm_runtime.bundle.open import open_bundle
    from mechm_runtime.errors import InputError

    folder = folder or default_bundle_path()
    opened = open_bundle(folder, check_hashes=False)
    preset = opened.preset
    if compose is not None:
        check_deployment_target(compose)
    if compose is not None and opened.served is not None:
        _write_deployment(folder, compose)
        return
    folder = bundle_to_change(folder)
    adapter = adapter or _adapter_folder(_trained_folder(preset, None), None)
    if adapter is None:
        raise InputError(f"no adapter is shipped with the preset {preset}", hint="name one with --adapter")
    settings = merge_settings(dtype, conversations, device)
    with steps_progress() as on_progress:
        made, check = add_served_llama(
            folder,
            adapter,
            base or weights_path("llm", preset),
            quantization=quantization,
            on_progress=on_progress,
            **settings,
        )
    print_merge(made, folder / SERVED_FOLDER)
    if check is not None:
        click.echo(
            f"in {quantization}: {100 * check.labels_kept:.1f} % of {check.n_utterances} labels and "
            f"{100 * check.pairs_kept:.1f} % of the pairs kept on {check.split}"
        )
    if compose is not None:
        _write_deployment(folder, compose)


@export.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@_trained
@_llm
@_llm_base
@conversations_option
@recordings_option
def verify(
    folder: Path,
    trained: Path | None,
    adapter: str | None,
    llm_base: Path | None,
    conversations: Path | None,
    recordings: tuple[tuple[Path, Path], ...],
) -> None:
    """Repeat every check on a bundle: hashes, names, axes, values, answers.

    Needs the base weights it was made from (`mechm weights fetch`). Exits with 1 where something differs.
    """
    require_packages()
    from rich.console import Console

    from mechm_export.bundle.write import verify_bundle
    from mechm_runtime.bundle.open import open_bundle
    from mechm_runtime.errors import VerificationError

    opened = open_bundle(folder, check_hashes=False)
    check_set = read_check_set(conversations, recordings)
    trained = _trained_folder(opened.preset, trained)
    llama = None if opened.llama is None else _adapter_folder(trained, adapter)
    with _steps(Console(stderr=True)) as on_step:
        report = verify_bundle(
            folder, trained=trained, adapter=llama, llm_base=llm_base, check_set=check_set, on_step=on_step
        )
    _print(report)
    if report.problems:
        raise VerificationError("; ".join(report.problems))
    click.echo(f"{folder} is what it says ({report.bundle.id})")


def _write_deployment(folder: Path, out: Path) -> None:
    from mechm_export.vllm.deployment_files import write_deployment
    from mechm_runtime.bundle.open import open_bundle
    from mechm_runtime.llm.vllm.launch_plan import ServeConfig

    for written in write_deployment(open_bundle(folder, check_hashes=False), ServeConfig(), out):
        click.echo(f"wrote {written}")


def _trained_folder(preset: str, given: Path | None) -> Path | None:
    """The trained weights to use; `tiny` has none unless they are named."""
    from mechm.model.build import pretrained_folder

    if given is not None or preset == "tiny":
        return given
    return pretrained_folder(preset)


def _adapter_folder(trained: Path | None, given: str | None) -> Path | None:
    """The Llama's adapter to use, or None.

    Raises: InputError: the folder that was given is no adapter's.
    """
    from mechm.llm.combination import LLAMA_FOLDER, is_adapter
    from mechm_runtime.errors import InputError

    if given == "none":
        return None
    if given is not None:
        if not is_adapter(Path(given)):
            raise InputError(f"{given} is no folder that `mechm train llm` wrote", hint="mechm train llm --help")
        return Path(given)
    beside = None if trained is None else trained / LLAMA_FOLDER
    return beside if beside is not None and is_adapter(beside) else None


@contextmanager
def _steps(console: Console) -> Iterator[Step]:
    """Show what is being done: a spinner on a terminal, a line a step elsewhere."""
    if not console.is_terminal:
        yield _line
        return
    with console.status("") as status:
        yield lambda what: status.update(what)


def _line(what: str) -> None:
    click.echo(what, err=True)


def _print(report: BundleReport) -> None:
    from rich.console import Console
    from rich.table import Table

    sizes = {name: facts["size_bytes"] for name, facts in report.bundle.manifest["files"].items()}
    values = Table(title="Parts against torch, random inputs of several sizes")
    for heading, justify in (("part", "left"), ("precision", "left"), ("MB", "right")):
        values.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for heading in ("largest difference", "lowest cosine"):
        values.add_column(heading, justify="right")
    for check in report.values:
        part = report.bundle.parts.get(check.part)
        if part is None or check.precision not in part.files:
            continue  # split off
        marked = f"{check.precision} *" if part.default == check.precision else check.precision
        size = sizes[part.files[check.precision]] / 1e6
        values.add_row(check.part, marked, f"{size:.1f}", f"{check.largest_difference:.1e}", f"{check.cosine:.5f}")
    tasks = Table(title="Answers against torch")
    for heading in ("conversations", "precision"):
        tasks.add_column(heading)
    for heading in ("utterances", "labels kept", "pairs kept", "weighted F1", "torch", "micro F1"):
        tasks.add_column(heading, justify="right")
    for task in report.tasks:
        tasks.add_row(
            task.split,
            task.precision,
            str(task.n_utterances),
            f"{task.labels_kept:.2%}",
            f"{task.pairs_kept:.2%}",
            *(_score(value) for value in (task.weighted_f1, task.torch_weighted_f1, task.micro_f1)),
        )
    # Piped output has no width of its own; these tables need 130 columns to keep a row on a line.
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(values)
    console.print("* what the runtime runs by default")
    console.print(tasks)
    for (name, precision), reason in report.accepted.items():
        console.print(f"{name}: {precision} was written although {reason}", highlight=False, soft_wrap=True)
    for (name, precision), reason in report.refused.items():
        console.print(f"{name}: {precision} was left out: {reason}", highlight=False, soft_wrap=True)
    console.print(f"bundle: {sum(sizes.values()) / 1e6:.1f} MB", highlight=False)


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
