"""`mechm serve`: the Llama of a bundle behind vLLM."""

from __future__ import annotations

import os
from pathlib import Path

import click


@click.group()
def serve() -> None:
    """Serve a part of a bundle to other processes."""


@serve.command()
@click.option(
    "--bundle",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="A bundle that `mechm export llm` has completed, or package:NAME for an installed one. Default: MECHM_BUNDLE, "
    "or what make demo built.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where it listens.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--concurrency", type=click.IntRange(min=1), default=16, show_default=True, help="Prompts that are read at once."
)
@click.option(
    "--gpu-memory",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.9,
    show_default=True,
    help="Share of the GPU's memory, with --device cuda.",
)
@click.option(
    "--step-tokens",
    type=click.IntRange(min=32),
    help="Tokens read in one step: longer conversations are read in several, so that short ones need not wait. "
    "Default: what vLLM chooses.",
)
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=1), default=600.0, show_default=True, help="Seconds to start."
)
@click.option("--print", "print_only", is_flag=True, help="Print the plain vLLM command instead of running it.")
@click.option("--verbose", is_flag=True, help="Show what vLLM writes.")
def llm(
    folder: Path | None,
    host: str,
    port: int,
    device: str,
    concurrency: int,
    gpu_memory: float,
    step_tokens: int | None,
    timeout_s: float,
    print_only: bool,
    verbose: bool,
) -> None:
    """Start vLLM with a bundle's Llama, until Ctrl-C; `mechm analyze --llm vllm` asks it.

    Where others than this machine shall reach it, set VLLM_API_KEY to what they must show.

    \b
    mechm export llm --bundle bundle && mechm serve llm --bundle bundle
    VLLM_API_KEY=... mechm serve llm --bundle bundle --host 0.0.0.0 --device cuda
    mechm serve llm --bundle bundle --print
    """
    import shlex
    import signal
    import sys

    from mechm_runtime.bundle import open_bundle
    from mechm_runtime.errors import LlmUnavailableError
    from mechm_runtime.serving.command import API_KEY, ServeConfig, plan_serving, serve_arguments, serve_environment
    from mechm_runtime.serving.process import running_server

    config = ServeConfig(host, port, device, concurrency, gpu_memory, os.environ.get(API_KEY), step_tokens)
    bundle = open_bundle(folder)
    plan = plan_serving(bundle, config)
    if print_only:
        shown = {name: value for name, value in serve_environment(plan, config).items() if name != API_KEY}
        variables = [f"{name}={shlex.quote(value)}" for name, value in shown.items()]
        click.echo(" ".join([*variables, "python", "-m", shlex.join(serve_arguments(plan, config))]))
        return
    needed = plan.memory
    click.echo(
        f"{plan.shape.n_parameters / 1e6:,.0f} M parameters: {needed.total_bytes / 1e9:.2f} GB at least, "
        f"{needed.weights_bytes / 1e9:.2f} of weights and {needed.cache_bytes / 1e9:.2f} for {concurrency} "
        f"conversations of {plan.context} tokens",
        err=True,
    )
    # A service manager stops with SIGTERM: the same way out as Ctrl-C's.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with running_server(bundle, config, timeout_s=timeout_s, verbose=verbose) as server:
            memory = "" if server.memory_bytes is None else f", {server.memory_bytes / 1e9:.2f} GB of memory"
            click.echo(f"the Llama of {bundle.id} answers at {server.url} after {server.started_s:.0f} s{memory}")
            status = server.wait()
            raise LlmUnavailableError(f"vLLM ended by itself with status {status}")
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
