"""`mechm import`: converts models of other projects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mechm.llm.merge import DType
    from mechm.minigpt.parts import LnVision


@click.group("import")
def import_group() -> None:
    """Convert a model of another project; it is written completely or not at all."""


@import_group.command("minigpt-v2")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    metavar="FILE",
    help="The trained weights: checkpoint.pth of MiniGPT-v2, MER-MCE or Emotion-LLaMA.",
)
@click.option(
    "--llama",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    metavar="DIR",
    help="The Llama that it was trained on, in Hugging Face format (Llama-2-7b-chat-hf).",
)
@click.option(
    "--vit",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="eva_vit_g.pth; not needed if the checkpoint contains a ViT.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Output folder.")
@click.option(
    "--dtype",
    type=click.Choice(["bf16", "fp16", "fp32"]),
    default="fp16",
    show_default=True,
    help="Precision of the Llama's weights; the original runs in fp16.",
)
@click.option(
    "--lora-alpha",
    type=click.FloatRange(min=0, min_open=True),
    help="Alpha of the LoRA. Default: the checkpoint's, else 16.",
)
@click.option(
    "--ln-vision",
    type=click.Choice(["checkpoint", "identity"]),
    default="checkpoint",
    show_default=True,
    help="Layer norm behind the ViT; identity is for checkpoints saved without one, as the original code runs them.",
)
def minigpt_v2(
    checkpoint: Path,
    llama: Path,
    vit: Path | None,
    out: Path,
    dtype: DType,
    lora_alpha: float | None,
    ln_vision: LnVision,
) -> None:
    """Import a MiniGPT-v2, MER-MCE or Emotion-LLaMA checkpoint and merge its LoRA into the Llama.

    Every tensor of the files is accounted for, no code in them is run, and the result is kept only if it answers like
    the Llama with the unmerged LoRA. Disk: the size of the result (15.5 GB for Llama-2-7b in fp16). Memory: a few of
    its blocks.

    \b
    mechm import minigpt-v2 --checkpoint checkpoint_6.pth --llama Llama-2-7b-chat-hf --vit eva_vit_g.pth --out mer-mce
    mechm ask picture --model mer-mce --task emotion dia1utt1.mp4 "Joey: You left me in the rain ."
    """
    from mechm.cli.options.progress import steps_progress
    from mechm.minigpt.comparison import describe
    from mechm.minigpt.importing import import_minigpt

    with steps_progress() as on_progress:
        made = import_minigpt(
            checkpoint,
            llama,
            vit,
            out,
            dtype=dtype,
            alpha=lora_alpha,
            ln_vision=ln_vision,
            on_progress=on_progress,
        )
    click.echo(f"{made.variant}: LoRA of rank {made.rank}, alpha {made.alpha:g}, on {made.n_pairs} layers")
    click.echo(f"merged, fp32, compared with the unmerged LoRA: {describe(made.merged)}")
    click.echo(f"written, {made.dtype}: {describe(made.written)}")
    click.echo(f"wrote {out} ({made.n_parameters / 1e6:,.0f} M parameters)")
