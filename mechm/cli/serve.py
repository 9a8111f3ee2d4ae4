"""`mechm serve`: starts vLLM with the Llama of a bundle or of an imported MiniGPT-v2."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mechm_runtime.llm.vllm.config import ServerConfig
    from mechm_runtime.llm.vllm.launch_plan import ServeConfig, ServingPlan
    from mechm_runtime.llm.vllm.process import ReadinessProbe


@click.group()
def serve() -> None:
    """Start a vLLM server with a Llama."""


_SERVER_OPTIONS = (
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on."),
    click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port to listen on."),
    click.option(
        "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where vLLM runs."
    ),
    click.option(
        "--concurrency",
        type=click.IntRange(min=1),
        default=16,
        show_default=True,
        help="Prompts processed at the same time.",
    ),
    click.option(
        "--gpu-memory",
        type=click.FloatRange(0, 1, min_open=True),
        default=0.9,
        show_default=True,
        help="Share of the GPU's memory to use, with --device cuda.",
    ),
    click.option(
        "--step-tokens",
        type=click.IntRange(min=32),
        help="Tokens processed in one step: longer conversations take several steps, so that short ones do not wait. "
        "Default: vLLM's choice.",
    ),
    click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=1),
        default=600.0,
        show_default=True,
        help="Seconds to wait for the server to start.",
    ),
    click.option("--print", "print_only", is_flag=True, help="Print the plain vLLM command instead of running it."),
    click.option("--verbose", is_flag=True, help="Show vLLM's own output."),
)


def server_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of vLLM, which the command receives as `config: ServeConfig`."""

    @wraps(command)
    def configured(
        *,
        host: str,
        port: int,
        device: str,
        concurrency: int,
        gpu_memory: float,
        step_tokens: int | None,
        **others: object,
    ) -> None:
        from mechm_runtime.llm.vllm.launch_plan import API_KEY, ServeConfig

        key = os.environ.get(API_KEY)
        config = ServeConfig(host, port, device, concurrency, gpu_memory, key, step_tokens)
        command(config=config, **others)

    for option in reversed(_SERVER_OPTIONS):
        configured = option(configured)
    return configured


@serve.command()
@click.option(
    "--bundle",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="A bundle completed by `mechm export llm`, or package:NAME for an installed one. Default: MECHM_BUNDLE, or "
    "the one in the cache folder.",
)
@server_options
def llm(
    folder: Path | None,
    config: ServeConfig,
    timeout_s: float,
    print_only: bool,
    verbose: bool,
) -> None:
    """Start vLLM with a bundle's Llama, for `mechm analyze --llm vllm`; Ctrl-C stops it.

    To serve other machines, set VLLM_API_KEY to the key that they must send.

    \b
    mechm export llm --bundle bundle && mechm serve llm --bundle bundle
    VLLM_API_KEY=... mechm serve llm --bundle bundle --host 0.0.0.0 --device cuda
    mechm serve llm --bundle bundle --print
    """
    from mechm_runtime.bundle.open import open_bundle
    from mechm_runtime.llm.vllm.launch_plan import plan_serving
    from mechm_runtime.llm.vllm.warm_up import QuestionProbe

    bundle = open_bundle(folder)
    plan = plan_serving(bundle, config)
    if print_only:
        _print(plan, config)
        return
    name = f"the Llama of {bundle.id}"
    _run(name, plan, config, partial(QuestionProbe, bundle), timeout_s=timeout_s, verbose=verbose)


@serve.command()
@click.option(
    "--model",
    "folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    metavar="DIR",
    help="The model: the output of mechm import minigpt-v2.",
)
@server_options
def minigpt(
    folder: Path,
    config: ServeConfig,
    timeout_s: float,
    print_only: bool,
    verbose: bool,
) -> None:
    """Start vLLM with the Llama of an imported MiniGPT-v2, for `mechm ask --backend vllm`; Ctrl-C stops it.

    Pictures are encoded where `mechm ask` runs. To serve other machines, set VLLM_API_KEY to the key that they must
    send.

    \b
    mechm serve minigpt --model mer-mce
    mechm serve minigpt --model mer-mce --device cuda --concurrency 64
    """
    from mechm.minigpt.folder import MAX_TOKENS, imported_folders, stored_precision
    from mechm_runtime.llm.vllm.embeddings import EmbeddingTable
    from mechm_runtime.llm.vllm.launch_plan import plan_folder
    from mechm_runtime.llm.vllm.warm_up import GenerationProbe

    _, llama = imported_folders(folder)
    plan = plan_folder(llama, stored_precision(llama), MAX_TOKENS, config)
    if print_only:
        _print(plan, config)
        return
    make_probe = partial(GenerationProbe, EmbeddingTable(llama))
    _run(f"the Llama of {folder.name}", plan, config, make_probe, timeout_s=timeout_s, verbose=verbose)


def _print(plan: ServingPlan, config: ServeConfig) -> None:
    """Print the command that would run, without the API key."""
    import shlex

    from mechm_runtime.llm.vllm.launch_plan import API_KEY, serve_arguments, serve_environment

    shown = {name: value for name, value in serve_environment(plan, config).items() if name != API_KEY}
    variables = [f"{name}={shlex.quote(value)}" for name, value in shown.items()]
    click.echo(" ".join([*variables, "python", "-m", shlex.join(serve_arguments(plan, config))]))


def _run(
    name: str,
    plan: ServingPlan,
    config: ServeConfig,
    make_probe: Callable[[ServerConfig], ReadinessProbe],
    *,
    timeout_s: float,
    verbose: bool,
) -> None:
    """Run the server until Ctrl-C or SIGTERM.

    Raises: LlmUnavailableError: it did not start, or ended by itself.
    """
    import signal
    import sys

    from mechm_runtime.errors import LlmUnavailableError
    from mechm_runtime.llm.vllm.process import running_server

    needed = plan.memory
    click.echo(
        f"{plan.shape.n_parameters / 1e6:,.0f} M parameters: {needed.total_bytes / 1e9:.2f} GB at least, "
        f"{needed.weights_bytes / 1e9:.2f} of weights and {needed.cache_bytes / 1e9:.2f} for {config.concurrency} "
        f"conversations of {plan.context} tokens",
        err=True,
    )
    # Service managers stop a process with SIGTERM, which ends the server like Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with running_server(plan, config, make_probe, timeout_s=timeout_s, verbose=verbose) as server:
            memory = "" if server.memory_bytes is None else f", {server.memory_bytes / 1e9:.2f} GB of memory"
            click.echo(f"{name} answers at {server.url} after {server.started_s:.0f} s{memory}")
            status = server.wait()
            raise LlmUnavailableError(f"vLLM ended by itself with status {status}")
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
