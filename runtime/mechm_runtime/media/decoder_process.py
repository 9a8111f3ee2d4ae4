"""Start and end the decoding process (`worker`): its command, its environment and its pipes.

What is asked of the process and what it answers is in `exchange`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

PIPE_BYTES = 1 << 20
"""Size of the pipe from the process, where the system allows it (Linux has 64 KiB by default): the process decodes this
far ahead. Three frames are 2 MB: with a smaller pipe, process and reader wait many times for each other on busy
cores."""

INHERITED_VARIABLES = (
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "PATH",
    "PYTHONHOME",
    "SYSTEMROOT",
    "TMP",
    "TEMP",
    "LANG",
    "LC_ALL",
)
"""Environment variables that the process inherits: those that a Python needs to start. No keys or tokens reach it."""

START = """
import sys, types
for name, *folders in (("mechm_runtime",), ("mechm_runtime.media", "media")):
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = ["/".join([sys.argv[1], *folders])]
from mechm_runtime.media.worker import main
main()
"""
"""The script of the process: it runs `worker.main` without the `__init__` of its packages. That of `media` imports the
reader and numpy, with which the process would start in 220 ms instead of 100."""


def start_decoder() -> subprocess.Popen[bytes]:
    """Start a decoding process without waiting for it. Requests go to its `stdin`, replies come from its `stdout`."""
    environment = {key: os.environ[key] for key in INHERITED_VARIABLES if key in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    environment["HOME"] = "/nonexistent"  # without one the interpreter asks for it, first at a socket
    process = subprocess.Popen(  # noqa: S603 (our own interpreter and script, no shell)
        # -P: nothing is imported from the caller's working directory. -s: PYTHONPATH has the user's packages already.
        [sys.executable, "-P", "-s", "-c", START, str(Path(__file__).parents[1])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    _enlarge(process.stdout)
    return process


def kill_decoder(process: subprocess.Popen[bytes]) -> None:
    """Kill a decoding process, close its pipes and wait for its end."""
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(BrokenPipeError):  # a buffered request that the process did not live to read
                stream.close()
    process.wait()


def _enlarge(pipe: IO[bytes] | None) -> None:
    """Set a pipe's size to `PIPE_BYTES`, where the system has that call and the user's quota of pipes allows it."""
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        if pipe is not None:
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
