"""`mechm ask`."""

from __future__ import annotations

import os
from pathlib import Path

import click


@click.command()
@click.option(
    "--model",
    "folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    metavar="DIR",
    help="What mechm import minigpt-v2 wrote.",
)
@click.option(
    "--task",
    metavar="WORD",
    help="Ask in MER-MCE's form, `[WORD] TEXT `. Default: the text as it is, after the picture.",
)
@click.option("--answers", metavar="A,B,...", help="Print how likely each of these answers is instead of writing one.")
@click.option(
    "--features",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="For Emotion-LLaMA: a numpy file (3, 1024) of its face, video and voice encoders' features.",
)
@click.option(
    "--max-new-tokens", type=click.IntRange(1, 2000), default=20, show_default=True, help="Longest answer written."
)
@click.option(
    "--backend",
    type=click.Choice(["torch", "vllm"]),
    default="torch",
    show_default=True,
    help="What runs the Llama; the picture's tokens are made by torch here.",
)
@click.option("--llm-url", metavar="URL", help="vllm: the server. Default: http://127.0.0.1:8000.")
@click.option("--llm-model", metavar="NAME", help="vllm: what the server calls the model. Default: mechm-llama.")
@click.option(
    "--dtype",
    type=click.Choice(["bf16", "fp16", "fp32"]),
    help="Of what torch runs. Default: fp32 on CPUs, fp16 on a GPU.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Default: cuda where there is one.")
@click.argument("media", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("text")
def ask(
    folder: Path,
    task: str | None,
    answers: str | None,
    features: Path | None,
    max_new_tokens: int,
    backend: str,
    llm_url: str | None,
    llm_model: str | None,
    dtype: str | None,
    device: str | None,
    media: Path,
    text: str,
) -> None:
    """Ask an imported MiniGPT-v2 about MEDIA, a picture or the first frame of a recording.

    It is asked in the words that it was trained with, and writes the likeliest tokens. A vLLM server of the imported
    Llama wants `--enable-prompt-embeds`.

    \b
    mechm ask --model mer-mce --task emotion dia1utt1.mp4 "Joey: You left me in the rain ."
    mechm ask --model mer-mce --task emotion --answers neutral,anger,joy dia1utt1.mp4 "Joey: ..."
    vllm serve mer-mce/llm --enable-prompt-embeds --max-logprobs 64 --served-model-name mechm-llama
    mechm ask --model mer-mce --backend vllm --task emotion dia1utt1.mp4 "Joey: ..."
    """
    import torch

    from mechm.llm.merge import DTYPES
    from mechm.minigpt.model import open_minigpt
    from mechm.minigpt.picture import first_frame_pixels, read_features
    from mechm_runtime.serving.command import API_KEY
    from mechm_runtime.serving.settings import MODEL, ServerConfig

    if backend == "torch" and (llm_url or llm_model):
        raise click.UsageError("--llm-url and --llm-model are for --backend vllm")
    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("--device cuda: torch finds no CUDA device here")
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    server = None
    if backend == "vllm":
        server = ServerConfig(llm_url or ServerConfig().url, os.environ.get(API_KEY), llm_model or MODEL)
    chosen = next(value for name, value in DTYPES.items() if name == (dtype or ("fp32" if place == "cpu" else "fp16")))
    model = open_minigpt(folder, server=server, dtype=chosen, device=place)
    pixels = first_frame_pixels(media, model.image_size)
    tokens = model.look(pixels, None if features is None else read_features(features))
    if answers is None:
        click.echo(model.answer(tokens, text, task=task, max_new_tokens=max_new_tokens))
        return
    given = [one.strip() for one in answers.split(",") if one.strip()]
    scored = zip(given, model.score(tokens, text, given, task=task), strict=True)
    for answer, score in sorted(scored, key=lambda one: -one[1]):
        click.echo(f"{score:9.3f}  {answer}")
