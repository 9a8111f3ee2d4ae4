"""The start scenario: time from the start of a process to its first result, and its peak memory, in fresh processes.

Each runs `mechm analyze`, which opens and hashes the bundle, loads the parts, and prints JSON. The first run, which
fills the disk's cache, is not counted. Memory is that of the process itself, without the short-lived decoder process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mechm.bench.first_result import PEAK
from mechm.bench.systems import MechmConfig
from mechm.bench.workload import describe, text_only, with_length
from mechm_runtime.errors import MechmError
from mechm_runtime.system.progress import Progress
from mechm_runtime.types import Conversation


@dataclass(frozen=True, slots=True)
class Start:
    """first_s: median seconds to the first byte of the result. worst_s: the slowest. peak_mb: largest peak memory."""

    system: str
    conversation: str
    n: int
    first_s: float
    worst_s: float
    peak_mb: float


def run_start(
    bundle: Path,
    configs: Sequence[MechmConfig],
    conversation: Conversation,
    modalities: Sequence[str],
    *,
    n_runs: int,
    on_progress: Progress,
) -> tuple[Start, ...]:
    """Measure one utterance as text, one with its recording, and the whole conversation, in every configuration.

    modalities: that the configurations use, for the descriptions.
    """
    # Clips are found by the transcript's name, which these temporary transcripts do not have.
    whole = conversation if conversation.media is not None else text_only(conversation)
    one = with_length(whole, 1)
    inputs = {describe(c, modalities): c for c in (text_only(one), one, whole)}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (config, described) in enumerate((config, name) for config in configs for name in inputs):
            on_progress(f"start: {config.name}, {described}", number, len(configs) * len(inputs))
            command = [*_command(bundle, config), *_input(inputs[described], Path(folder))]
            runs = [_first_result(command) for _ in range(n_runs + 1)][1:]
            seconds, peaks = [run[0] for run in runs], [run[1] for run in runs]
            rows.append(
                Start(
                    config.name,
                    described,
                    n_runs,
                    round(float(np.median(seconds)), 3),
                    round(max(seconds), 3),
                    round(max(peaks) / 1e6, 1),
                )
            )
    return tuple(rows)


def _command(bundle: Path, config: MechmConfig) -> list[str]:
    command = [sys.executable, "-m", "mechm.bench.first_result", "analyze", "--bundle", str(bundle), "--json", "-"]
    command += ["--quiet", "--llm", config.llm, "--engine", config.engine, "--threads", str(config.n_threads)]
    if config.precision is not None:
        command += ["--precision", config.precision]
    if config.server is not None:
        command += ["--llm-url", config.server.url]
    for modality in config.modalities or ():
        command += ["--modality", modality]
    return command


def _input(conversation: Conversation, folder: Path) -> list[str]:
    """Write the conversation's transcript into `folder`; returns the arguments that name the conversation."""
    transcript = folder / f"{len(conversation.utterances)}.json"
    turns = [
        {"utterance_ID": u.id, "speaker": u.speaker, "text": u.text or "", "start_s": u.start_s, "end_s": u.end_s}
        for u in conversation.utterances
    ]
    content = [{"conversation_ID": conversation.id, "conversation": turns}]
    transcript.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    if conversation.media is None:
        return [str(transcript)]
    return [str(conversation.media), "--transcript", str(transcript)]


def _first_result(command: Sequence[str]) -> tuple[float, int]:
    """Run a command; returns the seconds to the first byte of its answer, and its peak memory in bytes.

    Raises: MechmError: the command failed.
    """
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # noqa: S603 (no shell)
        assert process.stdout is not None  # noqa: S101 (it is a pipe)
        first = process.stdout.read(1)
        taken = time.perf_counter() - started
        _, errors = process.communicate()
    stderr = errors.decode("utf-8", errors="replace")
    if process.returncode != 0 or not first:
        raise MechmError(f"mechm analyze failed: {stderr.replace(PEAK, '').strip()[-300:]}")
    return taken, int(stderr.rpartition(PEAK)[2])
