"""The Llama that rescores utterances and where it runs: the options of the commands that analyse."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mechm_runtime.llm.rescoring import Llm
    from mechm_runtime.llm.vllm.config import ServerConfig

LLM_OPTIONS = (
    click.option(
        "--llm",
        type=click.Choice(["none", "onnx", "vllm", "vllm-local"]),
        help="Where the Llama runs that rescores utterances. onnx: here, the bundle's own graph. vllm: on a server "
        "(mechm serve llm); while it is down, analyze answers without it and says so. vllm-local: here, in vLLM. "
        "none: no Llama, which is faster and less accurate. Default: onnx if the bundle has it, else none.",
    ),
    click.option(
        "--llm-url",
        metavar="URL",
        help="The server of --llm vllm; its key is read from VLLM_API_KEY. Default: http://127.0.0.1:8000",
    ),
    click.option(
        "--llm-below",
        type=click.FloatRange(0.0, 1.0),
        metavar="P",
        help="Rescore only utterances whose likeliest emotion has a probability below P; 1 rescores all. "
        "Default: the bundle's own threshold, chosen on dev.",
    ),
)


def server_for(llm: Llm | None, url: str | None, asked_below: float | None) -> ServerConfig | None:
    """The server that the three options name, None where no server is asked.

    Raises: UsageError: an option that would have no effect. InputError: `url` is no address.
    """
    if llm == "none" and asked_below is not None:
        raise click.UsageError("--llm-below says when the Llama is asked, and --llm none that it never is")
    if llm == "vllm":
        return server_config(url)
    if url is not None:
        raise click.UsageError("--llm-url is for --llm vllm")
    return None


def server_config(url: str | None) -> ServerConfig:
    """The server at an address, with the key from the environment; None for the default address.

    Raises: InputError: it is no address.
    """
    from mechm_runtime.llm.vllm.config import ServerConfig
    from mechm_runtime.llm.vllm.launch_plan import API_KEY

    key = os.environ.get(API_KEY)
    return ServerConfig(api_key=key) if url is None else ServerConfig(url, key)
