"""Nothing leaves the machine: under strace `mechm analyze` asks for no socket and writes no file but its outputs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

TRACED = "trace=network,openat,open,creat,mkdir,mkdirat,rename,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat"
# The path is the first quoted string; reading alone is no effect.
_CALL = re.compile(r"^\d+\s+(?P<name>\w+)\((?P<arguments>.*)")
_PATH = re.compile(r'"([^"]*)"')
_WRITING = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC")


@cache
def without_network() -> tuple[str, ...]:
    """The command prefix that takes the network away and traces; skips where the system allows no tracing."""
    strace, unshare = shutil.which("strace"), shutil.which("unshare")
    if strace is None or subprocess.run([strace, "-o", os.devnull, "true"], check=False).returncode != 0:
        pytest.skip("strace cannot trace here")
    for options in (["--net"], ["--map-root-user", "--net"]):
        prefix = [unshare or "unshare", *options]
        if unshare and subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode == 0:
            return (*prefix, strace)
    return (strace,)  # with a network the sockets would be seen as well


@pytest.mark.parametrize("engine", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.openvino)])
def test_an_analysis_opens_no_socket_and_writes_only_its_outputs(
    engine: str, tiny_bundle: Path, repository: Path, tmp_path: Path
) -> None:
    trace, home, out = tmp_path / "trace", tmp_path / "home", tmp_path / "out"
    home.mkdir()
    out.mkdir()
    recording = repository / "sample" / "conversation.mp4"
    command = [sys.executable, "-c", "from mechm.cli import main; main()", "analyze", str(recording)]
    command += ["--transcript", str(recording.with_suffix(".srt")), "--llm", "none", "--engine", engine]
    outputs = {"--json": "answer.json", "--report": "report.html", "--vtt": "cues.vtt"}
    command += [word for option, name in outputs.items() for word in (option, str(out / name))]
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "LANG")}
    environment |= {"HOME": str(home), "MECHM_BUNDLE": str(tiny_bundle), "OMP_NUM_THREADS": "1"}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    done = subprocess.run(
        [*without_network(), "-f", "-qq", "-e", TRACED, "-o", str(trace), *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == sorted(outputs.values())
    sockets, written = effects(trace)
    assert sockets == []
    assert {path for path in written if not Path(path).is_relative_to(out)} <= {"/dev/null"}
    assert list(home.iterdir()) == []


def effects(trace: Path) -> tuple[list[str], set[str]]:
    """The network calls of a trace, and the paths that were created, changed, renamed or removed."""
    sockets: list[str] = []
    written: set[str] = set()
    for line in trace.read_text(errors="replace").splitlines():
        call = _CALL.match(line)
        if call is None:
            continue
        name, arguments = call["name"], call["arguments"]
        if name in ("open", "openat"):
            written |= set(_PATH.findall(arguments)) if _WRITING.search(arguments) else set()
        elif name in ("creat", "mkdir", "mkdirat") or name.startswith(("rename", "link", "symlink", "unlink")):
            written |= set(_PATH.findall(arguments)) if "ENOENT" not in arguments else set()
        else:
            sockets.append(line)
    return sockets, written


def test_the_check_sees_a_socket_and_a_file(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    code = f"import socket; socket.socket(); open({str(tmp_path / 'left')!r}, 'w')"
    subprocess.run(
        [*without_network(), "-f", "-qq", "-e", TRACED, "-o", str(trace), sys.executable, "-c", code], check=True
    )
    sockets, written = effects(trace)
    assert any("AF_INET" in line for line in sockets)
    assert str(tmp_path / "left") in written
