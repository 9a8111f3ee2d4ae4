"""Find out which execution providers of onnxruntime work here: each computes a product in a process of its own.

The process is `provider_probe`. onnxruntime is not imported into the calling process.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mechm_runtime.environment.packages import engine_distributions, gpu_install_command
from mechm_runtime.errors import MissingExtraError
from mechm_runtime.system.telemetry import NO_TELEMETRY

PROBE_TIMEOUT_S = 120.0
"""A first TensorRT session builds its engine, which takes tens of seconds on a slow machine."""

_ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_MISSING_LIBRARY = re.compile(
    r"([\w.+-]+): cannot open shared object file"  # Linux
    r"|depends on \"([^\"]+)\" which is missing"  # Windows, as onnxruntime words it
    r"|Library not loaded: (\S+)"  # macOS
)


@dataclass(frozen=True, slots=True)
class Provider:
    """One execution provider that onnxruntime lists.

    works: it computed the right product itself.
    reason: why not; fix: what to do about it, where that is known.
    setup_ms: milliseconds to open a session, None where it does not work.
    """

    name: str
    works: bool
    reason: str = ""
    fix: str = ""
    setup_ms: float | None = None


def examine_providers(*, timeout_s: float = PROBE_TIMEOUT_S) -> tuple[Provider, ...]:
    """Try every execution provider that the installed onnxruntime lists, each in a process of its own.

    Raises: MissingExtraError: onnxruntime is not installed.
    """
    if not engine_distributions():
        raise MissingExtraError("onnxruntime", extra="cpu")
    listing = "import json, onnxruntime; print(json.dumps(onnxruntime.get_available_providers()))"
    done = _child(["-c", listing], timeout_s=timeout_s)
    if isinstance(done, str) or done.returncode != 0:
        reason = done if isinstance(done, str) else explain(done)
        return (Provider("onnxruntime", works=False, reason=f"cannot be imported: {reason}", fix=_fix(reason)),)
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return tuple(examine_provider(name, timeout_s=timeout_s) for name in names)


def examine_provider(name: str, *, timeout_s: float = PROBE_TIMEOUT_S) -> Provider:
    """Let one provider compute a small product in a child process and judge its answer."""
    done = _child(["-m", "mechm_runtime.environment.provider_probe", name], timeout_s=timeout_s)
    if isinstance(done, str):
        return Provider(name, works=False, reason=done)
    if done.returncode != 0:
        reason = explain(done)
        return Provider(name, works=False, reason=reason, fix=_fix(reason))
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    first = answer["providers"][0]
    if first != name:
        reason = f"onnxruntime set up {first} instead"
    elif not answer["max_difference"] <= 1e-3:  # also true for NaN
        reason = f"it computes wrong values: the largest difference is {answer['max_difference']:g}"
    else:
        return Provider(name, works=True, setup_ms=round(answer["setup_ms"], 1))
    return Provider(name, works=False, reason=reason)


def _child(arguments: Sequence[str], *, timeout_s: float) -> subprocess.CompletedProcess[str] | str:
    """Run this Python with `arguments`; returns a sentence where it hung or could not start."""
    try:
        return subprocess.run(  # noqa: S603 - this interpreter, with arguments of ours
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **NO_TELEMETRY},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout_s:g} s"
    except OSError as error:
        return f"Python could not be started: {error}"


def explain(done: subprocess.CompletedProcess[str]) -> str:
    """The reason why a probe's process failed, in one line, from its exit code and its output."""
    if done.returncode < 0:
        try:
            name = signal.Signals(-done.returncode).name
        except ValueError:
            name = f"signal {-done.returncode}"
        return f"it crashed the process ({name})"
    printed = _ANSI_COLOUR.sub("", done.stdout + done.stderr)
    libraries = dict.fromkeys(next(filter(None, match.groups())) for match in _MISSING_LIBRARY.finditer(printed))
    if libraries:
        return f"missing {'library' if len(libraries) == 1 else 'libraries'}: {', '.join(libraries)}"
    if "assigned to the default CPU EP" in printed:
        return "it took no operator of the test graph, which then would run on the CPU"
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    if not lines:
        return f"its process ended with exit code {done.returncode}"
    return lines[-1][:300]


def _fix(reason: str) -> str:
    """The known remedy for a provider that failed for `reason`; empty where there is none."""
    if not reason.startswith("missing librar"):
        return ""
    if "libcuda.so" in reason or "nvcuda" in reason:
        return "this library comes with NVIDIA's driver: install that, or use a machine with an NVIDIA GPU"
    if "libcu" in reason or "libnvrtc" in reason or "cublas" in reason or "cudnn" in reason:
        return gpu_install_command(())
    if "nvinfer" in reason:
        return "install TensorRT 10.13.2 or later, below 11, for CUDA 13 and put its libraries on the loader's path"
    return ""
