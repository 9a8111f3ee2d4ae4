"""The imported Llama behind a real vLLM server: it writes the tokens that torch writes, and scores answers alike."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from click.testing import CliRunner

from mechm.cli import cli
from mechm.minigpt.importing import import_minigpt
from mechm.minigpt.model import open_minigpt
from mechm_runtime.errors import InputError, LlmUnavailableError
from mechm_runtime.serving.command import QUIET
from mechm_runtime.serving.settings import MODEL, ServerConfig

TEXT = "Ben: No way, congratulations!"
START_S = 240
ENVIRONMENT = {
    **QUIET,
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


@pytest.fixture(scope="module")
def folder(shared_files: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "model"
    files = shared_files
    import_minigpt(files.checkpoint, files.llama, files.vit, out, dtype="fp32", shape=files.small)
    return out


@pytest.fixture(scope="module")
def url(folder: Path, vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A plain vLLM, started as the help of `mechm ask` says."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--enable-prompt-embeds", "--max-logprobs", "64", "--served-model-name", MODEL, "--port", str(port)]
    on_cpus = ["--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-model-len", "512"]
    log = tmp_path_factory.mktemp("vllm") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                vllm_python,
                "-m",
                "vllm.entrypoints.openai.api_server",
                "--model",
                str(folder / "llm"),
                *options,
                *on_cpus,
            ],
            env={**os.environ, **ENVIRONMENT},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        give_up = time.monotonic() + START_S
        while process.poll() is None and time.monotonic() < give_up:
            try:
                if httpx2.get(f"{address}/health", timeout=5, trust_env=False).status_code == 200:
                    break
            except httpx2.HTTPError:
                time.sleep(0.5)
        else:
            pytest.fail(log.read_text(errors="replace")[-4000:])
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.vllm
def test_vllm_answers_as_torch_does(url: str, folder: Path) -> None:
    here, there = open_minigpt(folder), open_minigpt(folder, server=ServerConfig(url, timeout_s=120))
    written = set()
    for seed in range(3):
        pixels = np.random.default_rng(seed).normal(size=(3, 112, 112)).astype(np.float32)
        tokens = here.look(pixels)
        prompt = here.prompts.read(TEXT, task="emotion")
        ids = here.writer.write(prompt.ids, prompt.image_at, tokens, 20)
        assert there.writer.write(prompt.ids, prompt.image_at, tokens, 20) == ids
        assert there.answer(tokens, TEXT, task="emotion") == here.answer(tokens, TEXT, task="emotion")
        answers = ["joy", "surprise", "neutral"]
        np.testing.assert_allclose(there.score(tokens, TEXT, answers), here.score(tokens, TEXT, answers), atol=2e-3)
        written.add(tuple(ids))
    assert len(written) > 1


@pytest.mark.vllm
def test_the_command_asks_the_server(url: str, folder: Path, repository: Path) -> None:
    arguments = [
        "ask",
        "picture",
        "--model",
        str(folder),
        "--device",
        "cpu",
        str(repository / "sample/conversation.mp4"),
        TEXT,
    ]
    here = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    there = CliRunner().invoke(cli, [*arguments, "--backend", "vllm", "--llm-url", url], catch_exceptions=False)
    assert here.exit_code == there.exit_code == 0
    assert there.output == here.output


@pytest.mark.vllm
def test_a_server_that_cannot_answer_is_said_to(url: str, folder: Path) -> None:
    tokens = np.zeros((16, 64), np.float32)
    with pytest.raises(InputError, match="does not know the model other"):
        open_minigpt(folder, server=ServerConfig(url, model="other")).answer(tokens, TEXT)
    with pytest.raises(LlmUnavailableError, match="no Llama's server"):
        open_minigpt(folder, server=ServerConfig("http://127.0.0.1:9", n_retries=0)).answer(tokens, TEXT)
    with pytest.raises(ValueError, match="not finite"):
        open_minigpt(folder, server=ServerConfig(url)).answer(tokens * np.nan, TEXT)
