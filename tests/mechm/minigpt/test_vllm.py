"""The imported Llama behind a real vLLM server: it writes the tokens that torch writes, and scores answers alike."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mechm.cli import cli
from mechm.minigpt.importing import import_minigpt
from mechm.minigpt.model import open_minigpt
from mechm_runtime.errors import InputError, LlmUnavailableError, WeightsError
from mechm_runtime.llm.vllm.config import MODEL, ServerConfig

TEXT = "Ben: No way, congratulations!"
START_S = 240


@pytest.fixture(scope="module")
def folder(shared_files: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "model"
    files = shared_files
    import_minigpt(files.checkpoint, files.llama, files.vit, out, dtype="fp32", shape=files.small)
    return out


@pytest.fixture(scope="module")
def url(folder: Path, vllm_python: str) -> Iterator[str]:
    """A server that `mechm serve minigpt` runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [vllm_python, "-c", "from mechm.cli import main; main()", "serve", "minigpt", "--model", str(folder)]
    command += ["--port", str(port), "--timeout", str(START_S), "--concurrency", "4"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = f"http://127.0.0.1:{port}"
    try:
        said = process.stdout.readline()
        assert f"the Llama of model answers at {address}" in said, said
        yield address
    finally:
        process.terminate()
        assert process.wait(60) == 0
        process.stdout.close()


def test_the_plain_command_is_shown(folder: Path) -> None:
    shown = CliRunner().invoke(cli, ["serve", "minigpt", "--model", str(folder), "--print"], catch_exceptions=False)
    assert shown.exit_code == 0
    words = shown.output.split()
    assert {"--enable-prompt-embeds", "vllm.entrypoints.openai.api_server"} <= set(words)
    assert words[words.index("--model") + 1] == str((folder / "llm").absolute())
    assert words[words.index("--served-model-name") + 1] == MODEL
    assert words[words.index("--dtype") + 1] == "float32"


def test_only_what_was_imported_is_served(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(WeightsError, match="no imported model") as refused:
        CliRunner().invoke(cli, ["serve", "minigpt", "--model", str(tmp_path), "--print"], catch_exceptions=False)
    assert "mechm import minigpt-v2" in refused.value.hint
    copied = Path(shutil.copytree(folder, tmp_path / "model"))
    config = copied / "llm" / "config.json"
    config.write_text(config.read_text().replace('"float32"', '"int3"'))
    with pytest.raises(WeightsError, match="stored as 'int3'"):
        CliRunner().invoke(cli, ["serve", "minigpt", "--model", str(copied), "--print"], catch_exceptions=False)


@pytest.mark.vllm
def test_vllm_answers_as_torch_does(url: str, folder: Path) -> None:
    here, there = open_minigpt(folder), open_minigpt(folder, backend="vllm", server=ServerConfig(url, timeout_s=120))
    written = set()
    for seed in range(3):
        pixels = np.random.default_rng(seed).normal(size=(3, 112, 112)).astype(np.float32)
        tokens = here.encode_picture(pixels)
        prompt = here.prompts.read(TEXT, task="emotion")
        ids = here.generator.generate(prompt.ids, prompt.image_at, tokens, 20)
        assert there.generator.generate(prompt.ids, prompt.image_at, tokens, 20) == ids
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
        open_minigpt(folder, backend="vllm", server=ServerConfig(url, model="other")).answer(tokens, TEXT)
    with pytest.raises(LlmUnavailableError, match="no Llama's server"):
        open_minigpt(folder, backend="vllm", server=ServerConfig("http://127.0.0.1:9", n_retries=0)).answer(
            tokens, TEXT
        )
    with pytest.raises(ValueError, match="not finite"):
        open_minigpt(folder, backend="vllm", server=ServerConfig(url)).answer(tokens * np.nan, TEXT)


ASK = """
import sys
from pathlib import Path
import numpy as np
from mechm.minigpt.model import open_minigpt

model = open_minigpt(Path(sys.argv[1]), backend="vllm-local")
given = np.load(sys.argv[2])
prompt = model.prompts.read(sys.argv[4], task="emotion")
found = {}
for number, tokens in enumerate(given["tokens"]):
    found[f"ids{number}"] = model.generator.generate(prompt.ids, prompt.image_at, tokens, 20)
    found[f"scores{number}"] = model.score(tokens, sys.argv[4], ["joy", "surprise", "neutral"])
try:
    model.answer(given["tokens"][0] * np.nan, "?")
    raise SystemExit("tokens that are no numbers were accepted")
except ValueError:
    pass
np.savez(sys.argv[3], **found)
"""


@pytest.mark.vllm
def test_vllm_in_a_process_of_ones_own_answers_as_torch_does(vllm_python: str, folder: Path, tmp_path: Path) -> None:
    here = open_minigpt(folder)
    pixels = np.random.default_rng(7).normal(size=(3, 3, 112, 112)).astype(np.float32)
    tokens = np.stack([here.encode_picture(one) for one in pixels])
    np.savez(tmp_path / "given.npz", tokens=tokens)
    files = [str(folder), str(tmp_path / "given.npz"), str(tmp_path / "found.npz")]
    done = subprocess.run(
        [vllm_python, "-c", ASK, *files, TEXT], capture_output=True, text=True, timeout=START_S, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = np.load(tmp_path / "found.npz")
    prompt = here.prompts.read(TEXT, task="emotion")
    for number, one in enumerate(tokens):
        assert found[f"ids{number}"].tolist() == here.generator.generate(prompt.ids, prompt.image_at, one, 20)
        expected = here.score(one, TEXT, ["joy", "surprise", "neutral"])
        np.testing.assert_allclose(found[f"scores{number}"], expected, atol=2e-3)
