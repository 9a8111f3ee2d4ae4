"""`mechm export llm`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mechm.cli.merge import merge_options, merge_settings, print_merge
from mechm_export.cli.options import BundleFolder, bundle_to_change, find_adapter, find_trained, require_packages

if TYPE_CHECKING:
    from mechm.llm.merge import DType
    from mechm_export.llama.compressed import SchemeName


@click.command()
@click.option(
    "--bundle",
    "folder",
    type=BundleFolder(),
    metavar="DIR",
    help="The bundle to add it to, which has the Llama as a graph. With --compose, a bundle that has it already may be "
    "package:NAME, an installed one. Default: MECHM_BUNDLE, or the one in the cache folder.",
)
@click.option(
    "--adapter",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="The adapter that the bundle's Llama was made from. Default: the one shipped with the bundle's preset.",
)
@merge_options
@click.option(
    "--quantize",
    "quantization",
    type=click.Choice(["int8", "fp8"]),
    help="Store and multiply its linear layers in 8 bits, with half the memory of bf16: int8 for CPUs and GPUs, fp8 "
    "for GPUs from Ada and Hopper on. Refused where answers change.",
)
@click.option(
    "--compose",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Also write compose.yaml and kubernetes.yaml there, which serve it with vLLM's official image. For a bundle "
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
    """Add the Llama to a bundle as vLLM loads it: merged, in the Hugging Face layout; `mechm serve llm` serves it.

    Nothing is written unless it gives the same answers as the base with its adapter. Needs 4 bytes of memory per
    parameter.

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
    adapter = adapter or find_adapter(find_trained(preset, None), None)
    if adapter is None:
        raise InputError(f"no adapter is shipped with the preset {preset}", hint="name one with --adapter")
    settings = merge_settings(dtype, conversations, device)
    with steps_progress() as on_progress:
        merged, check = add_served_llama(
            folder,
            adapter,
            base or weights_path("llm", preset),
            quantization=quantization,
            on_progress=on_progress,
            **settings,
        )
    print_merge(merged, folder / SERVED_FOLDER)
    if check is not None:
        click.echo(
            f"in {quantization}: {100 * check.labels_kept:.1f} % of {check.n_utterances} labels and "
            f"{100 * check.pairs_kept:.1f} % of the pairs kept on {check.split}"
        )
    if compose is not None:
        _write_deployment(folder, compose)


def _write_deployment(folder: Path, out: Path) -> None:
    from mechm_export.vllm.deployment_files import write_deployment
    from mechm_runtime.bundle.open import open_bundle
    from mechm_runtime.llm.vllm.launch_plan import ServeConfig

    for written in write_deployment(open_bundle(folder, check_hashes=False), ServeConfig(), out):
        click.echo(f"wrote {written}")
