"""`mechm merge`: merges the Llama's LoRA adapter into its base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mechm.llm.merge import DType, MergeReport


_OPTIONS = (
    click.option(
        "--base",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        metavar="DIR",
        help="The model it was trained on, in Hugging Face format. Default: the preset's, see mechm weights.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["bf16", "fp16", "fp32"]),
        default="bf16",
        show_default=True,
        help="Precision of the written weights.",
    ),
    click.option(
        "--conversations",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Conversations to compare answers on: ECF / SemEval JSON, MECPE text or subtitles. Default: four that "
        "come with mechm.",
    ),
    click.option(
        "--device",
        type=click.Choice(["cpu", "cuda"]),
        help="Where to compare. Default: cuda if there is a GPU, else cpu.",
    ),
)


def merge_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of merging an adapter: `base`, `dtype`, `conversations` and `device`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def merge_settings(dtype: DType, conversations: Path | None, device: str | None) -> dict[str, Any]:
    """Keyword arguments of `mechm.llm.merge.merge_adapter` from the options.

    Raises: UsageError: the device is missing. TranscriptError: the conversations cannot be read.
    """
    import torch

    from mechm_runtime.readers import read_transcript

    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("--device cuda: torch finds no CUDA device here")
    return {
        "dtype": dtype,
        "conversations": None if conversations is None else (conversations.name, read_transcript(conversations)),
        "device": device or ("cuda" if torch.cuda.is_available() else "cpu"),
    }


def print_merge(made: MergeReport, out: Path) -> None:
    """Print the comparison of the merged model, and where it was written."""
    from mechm.llm.merge import describe

    click.echo(f"on {made.conversations} ({made.n_conversations} conversations), against base and adapter in fp32:")
    click.echo(f"merged, fp32: {describe(made.merged)}")
    click.echo(f"written, {made.dtype}: {describe(made.written)}")
    click.echo(f"wrote {out} ({made.n_parameters / 1e6:,.0f} M parameters, {made.dtype})")


@click.command()
@click.option(
    "--adapter",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    metavar="DIR",
    help="The adapter: the output of mechm train llm.",
)
@click.option(
    "--preset",
    type=click.Choice(["small", "llama2-7b"]),
    help="Preset of the base. Default: the one that the adapter names.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Output folder.")
@merge_options
def merge(
    adapter: Path,
    base: Path | None,
    preset: str | None,
    out: Path,
    dtype: DType,
    conversations: Path | None,
    device: str | None,
) -> None:
    """Merge the Llama's LoRA adapter into its base: a plain model that transformers and vLLM load.

    The merged model is kept only if it answers like the base with its adapter. Memory: 4 bytes per parameter, 0.6 GB
    for the preset small and 27 GB for llama2-7b.

    \b
    mechm merge --adapter runs/llm --out runs/llm-merged
    mechm merge --adapter runs/llm --base Llama-2-7b-chat-hf --dtype fp16 --out runs/llama2-merged
    """
    from mechm.cli.options.progress import steps_progress
    from mechm.llm.merge import merge_adapter
    from mechm.llm.stored_adapter import read_adapter
    from mechm.weights import weights_path
    from mechm_runtime.errors import WeightsError

    named = read_adapter(adapter).card.get("preset")
    if preset is not None and preset != named:
        raise WeightsError(
            f"the adapter in {adapter} was trained for preset {named}, not {preset}", hint="leave --preset out"
        )
    if base is None and named not in ("small", "llama2-7b"):
        raise WeightsError(
            f"the card of {adapter} names no preset", hint="give the base that it was trained on: --base"
        )
    settings = merge_settings(dtype, conversations, device)
    folder = weights_path("llm", str(named)) if base is None else base
    with steps_progress() as on_progress:
        made = merge_adapter(adapter, folder, out, on_progress=on_progress, **settings)
    print_merge(made, out)
