"""Which Llama is asked, and where: the options of the commands that analyse."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mechm_runtime.llm.rescoring import Llm
    from mechm_runtime.llm.vllm.config import ServerConfig


def llm_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--llm`, `--llm-url` and `--llm-below`, which reach the command as `llm`, `server` and `asked_below`."""

    @functools.wraps(command)
    def with_llm(*, llm: Llm | None, llm_url: str | None, llm_below: float | None, **arguments: Any) -> None:
        if llm == "none" and llm_below is not None:
            raise click.UsageError("--llm-below says when the Llama is asked, and --llm none that it never is")
        command(llm=llm, server=_server(llm, llm_url), asked_below=llm_below, **arguments)

    which = click.option(
        "--llm",
        type=click.Choice(["none", "onnx", "vllm", "vllm-local"]),
        help="Which Llama is asked about what was said: the bundle's own graph (onnx), a server that serves it "
        "(vllm, see mechm serve llm), vLLM in this process (vllm-local), or none, which is faster and finds less. "
        "Default: onnx, where the bundle has it.",
    )
    where = click.option(
        "--llm-url",
        metavar="URL",
        help="Where the server of --llm vllm is, whose key is taken from VLLM_API_KEY. Default: http://127.0.0.1:8000",
    )
    below = click.option(
        "--llm-below",
        type=click.FloatRange(0.0, 1.0),
        metavar="P",
        help="Ask the Llama about utterances whose likeliest emotion has less than this probability without it. "
        "Default: what the bundle says, chosen on dev; 1 asks about all.",
    )
    return which(where(below(with_llm)))


def _server(llm: Llm | None, url: str | None) -> ServerConfig | None:
    """The server to ask, None where none is.

    Raises: UsageError: an address that would not be used. InputError: it is no address.
    """
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
