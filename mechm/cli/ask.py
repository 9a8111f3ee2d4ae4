"""`mechm ask`: asks an imported MiniGPT-v2 about pictures and recordings."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mechm.minigpt.model import Backend, MiniGptV2

SERVED_AT_ONCE = 8
"""Questions sent to a server at the same time; it batches them."""

_OPTIONS = (
    click.option(
        "--model",
        "folder",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        required=True,
        metavar="DIR",
        help="The model: the output of mechm import minigpt-v2.",
    ),
    click.option(
        "--task",
        metavar="WORD",
        help="Ask in MER-MCE's format, `[WORD] TEXT `. Default: the text unchanged, after the picture.",
    ),
    click.option(
        "--max-new-tokens",
        type=click.IntRange(1, 2000),
        default=20,
        show_default=True,
        help="Longest answer, in tokens.",
    ),
    click.option(
        "--backend",
        type=click.Choice(["torch", "vllm", "vllm-local"]),
        default="torch",
        show_default=True,
        help="Where the Llama runs: in this process (torch, vllm-local) or on a vLLM server (vllm). The ViT always "
        "runs here, in torch.",
    ),
    click.option("--llm-url", metavar="URL", help="The server of --backend vllm. Default: http://127.0.0.1:8000."),
    click.option("--llm-model", metavar="NAME", help="The model's name on that server. Default: mechm-llama."),
    click.option(
        "--dtype",
        type=click.Choice(["bf16", "fp16", "fp32"]),
        help="Precision in torch. Default: fp32 on a CPU, fp16 on a GPU.",
    ),
    click.option(
        "--device",
        type=click.Choice(["cpu", "cuda"]),
        help="Where torch runs. Default: cuda if there is a GPU, else cpu.",
    ),
)


def model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of the model, the question's format, the longest answer and the backend."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.group()
def ask() -> None:
    """Ask an imported MiniGPT-v2, MER-MCE or Emotion-LLaMA in the prompt format of its training.

    The model sees a picture, or a recording's first frame, and generates the likeliest tokens. A vLLM server can run
    its Llama:

    \b
    mechm serve minigpt --model mer-mce
    mechm ask picture --model mer-mce --backend vllm --task emotion dia1utt1.mp4 "Joey: You left me in the rain ."
    """


@ask.command()
@model_options
@click.option(
    "--answers",
    metavar="A,B,...",
    help="Print the score (log probability) of each of these answers instead of generating one.",
)
@click.option(
    "--features",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="For Emotion-LLaMA: features of its face, video and audio encoders, a numpy file (3, 1024).",
)
@click.argument("media", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("text")
def picture(
    folder: Path,
    task: str | None,
    max_new_tokens: int,
    backend: Backend,
    llm_url: str | None,
    llm_model: str | None,
    dtype: str | None,
    device: str | None,
    answers: str | None,
    features: Path | None,
    media: Path,
    text: str,
) -> None:
    """Ask TEXT about MEDIA, a picture or a recording.

    \b
    mechm ask picture --model mer-mce --task emotion dia1utt1.mp4 "Joey: You left me in the rain ."
    mechm ask picture --model mer-mce --task emotion --answers neutral,anger,joy dia1utt1.mp4 "Joey: ..."
    """
    from mechm.minigpt.picture import first_frame_pixels, read_features

    model = open_model(folder, backend, llm_url, llm_model, dtype, device)
    extra = None if features is None else read_features(features)
    tokens = model.encode_picture(first_frame_pixels(media, model.image_size), extra)
    if answers is None:
        click.echo(model.answer(tokens, text, task=task, max_new_tokens=max_new_tokens))
        return
    given = [one.strip() for one in answers.split(",") if one.strip()]
    scored = zip(given, model.score(tokens, text, given, task=task), strict=True)
    for answer, score in sorted(scored, key=lambda one: -one[1]):
        click.echo(f"{score:9.3f}  {answer}")


@ask.command()
@model_options
@click.option(
    "--clips",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    metavar="DIR",
    help="Folder with the questions' clips, NAME.mp4 or NAME.avi.",
)
@click.option(
    "--features",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="For Emotion-LLaMA: folder with one numpy file (3, 1024) per clip, NAME.npy.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    help="Output file for the answers.",
)
@click.option("--resume", is_flag=True, help="Continue after the answers already in --out.")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def questions(
    folder: Path,
    task: str | None,
    max_new_tokens: int,
    backend: Backend,
    llm_url: str | None,
    llm_model: str | None,
    dtype: str | None,
    device: str | None,
    clips: Path,
    features: Path | None,
    out: Path,
    resume: bool,
    file: Path,
) -> None:
    """Ask the questions of FILE, one JSON object per line, and write one line `NAME<tab>ANSWER` per question.

    Both files have the format of MER-MCE's eval_ECAC_cause.py.

    \b
    mechm ask questions --model mer-mce --task emotion --clips videos --out answers.txt submit_now-n_w-e.json
    """
    from mechm.cli.options.progress import steps_progress
    from mechm.minigpt.questions import answer_questions, read_questions, write_answers
    from mechm_runtime.errors import InputError

    if out.exists() and not resume:
        raise InputError(f"{out} exists", hint="choose another --out, or go on with it: --resume")
    asked = read_questions(file, clips, features)
    model = open_model(folder, backend, llm_url, llm_model, dtype, device)
    n_threads = SERVED_AT_ONCE if backend == "vllm" else 1
    with steps_progress() as on_progress:
        for done in write_answers(
            out,
            asked,
            lambda left: answer_questions(model, left, task=task, max_new_tokens=max_new_tokens, n_threads=n_threads),
        ):
            on_progress("answering", done, len(asked))
    click.echo(f"wrote {out} ({len(asked)} answers)")


def open_model(
    folder: Path, backend: Backend, llm_url: str | None, llm_model: str | None, dtype: str | None, device: str | None
) -> MiniGptV2:
    """Open the model with the chosen backend, precision and device.

    Raises: UsageError: options contradict each other, or the device is missing.
    """
    import torch

    from mechm.llm.merge import DTYPES
    from mechm.minigpt.model import open_minigpt
    from mechm_runtime.llm.vllm.config import MODEL, ServerConfig
    from mechm_runtime.llm.vllm.launch_plan import API_KEY

    if backend != "vllm" and (llm_url or llm_model):
        raise click.UsageError("--llm-url and --llm-model are for --backend vllm")
    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("--device cuda: torch finds no CUDA device here")
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    server = None
    if backend == "vllm":
        server = ServerConfig(llm_url or ServerConfig().url, os.environ.get(API_KEY), llm_model or MODEL)
    wanted = dtype or ("fp32" if place == "cpu" else "fp16")
    chosen = next(value for name, value in DTYPES.items() if name == wanted)
    return open_minigpt(folder, backend=backend, server=server, dtype=chosen, device=place)
