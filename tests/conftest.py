"""Fixtures that several packages' tests share: research data, base weights, bundles, a Python that lacks packages."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import pytest
from filelock import FileLock

from mechm_runtime.environment.machine import examine_machine
from mechm_runtime.system.cache_dir import cache_dir

REPOSITORY = Path(__file__).parent.parent

BUNDLE_SOURCES = (
    "mechm/model",
    "mechm/weights/parts.py",
    "export/mechm_export",
    *(f"runtime/mechm_runtime/{name}" for name in ("bundle", "fusion", "modalities", "pipeline.py", "types.py")),
    *(f"runtime/mechm_runtime/engines/{name}.py" for name in ("base", "load", "onnxruntime_engine")),
    "runtime/mechm_runtime/llm/questions.py",
)
"""Sources that a bundle's content and its measurements depend on, besides base weights (pinned), trained weights and
`BUNDLE_PACKAGES`."""

BUNDLE_PACKAGES = ("mechm", "torch", "transformers", "onnx", "onnxscript", "onnxruntime")
KEPT_BUNDLES_S = 2 * 3600
"""Test bundles of other sources that nobody used for this long are deleted."""

WITHOUT = """
import sys

class Without:
    '''A finder that does not know some packages: to the import system they look as if they were not installed.'''

    def __init__(self, finder, names):
        self.finder, self.names = finder, names

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self.names else self.finder.find_spec(name, path, target)

    def __getattr__(self, attribute):
        return getattr(self.finder, attribute)

sys.meta_path[:] = [Without(finder, {names!r}) for finder in sys.meta_path]
"""

FreshPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def exact_int8() -> None:
    """Skips a test of int8 values where onnxruntime computes others: on x86 without VNNI.

    Its kernel for AVX2 adds pairs of products of unsigned and signed bytes in 16 bits, and such sums saturate
    (`vpmaddubsw`); VNNI adds them in 32 bits.
    """
    machine = examine_machine()
    is_x86 = machine.architecture.lower() in ("x86_64", "amd64")
    if is_x86 and not {"AVX512-VNNI", "AVX-VNNI", "AMX-INT8"} & set(machine.cpu_features):
        pytest.skip("onnxruntime's int8 saturates on this CPU, which has no VNNI instructions")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """A Python that has vLLM and mechm, which `make vllm` makes; the test is skipped without one."""
    python = os.environ.get("MECHM_VLLM_PYTHON")
    if not python:
        pytest.skip("MECHM_VLLM_PYTHON is not set: it names a Python with vLLM, see make vllm")
    return python


@pytest.fixture(scope="session")
def fresh_python() -> FreshPython:
    """`fresh_python(code, without=[...])` runs code in a new process in which those packages cannot be imported."""

    def run(code: str, *, without: Iterable[str] = (), **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", WITHOUT.replace("{names!r}", repr(set(without))) + code],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, **environment},
        )

    return run


@pytest.fixture(scope="session")
def mechm_data() -> Path:
    """The folder with research data and recordings that is no part of the project; the test is skipped without it."""
    folder = os.environ.get("MECHM_DATA")
    if not folder:
        pytest.skip("MECHM_DATA is not set: it names the folder with the research data")
    return Path(folder)


@pytest.fixture(scope="session")
def small_weights() -> Path:
    """The folder with the base weights of the preset `small`, its Llama's too, fetched first where they are missing."""
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    mechm = [sys.executable, "-c", "from mechm.cli import main; main()"]
    command = [*mechm, "weights", "fetch", "--preset", "small", "--with-llm"]
    with FileLock(cache / "tests.lock"):  # the test workers start at the same time
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"the base weights could not be fetched:\n{done.stdout}{done.stderr}")
    return cache / "weights" / "small"


@pytest.fixture(scope="session")
def llama_base(small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with random weights and SmolLM2's tokenizer, in the Hugging Face layout. Treat as read-only."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(small_weights / "llm" / name, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(small_weights: Path) -> Path:
    """A bundle of the preset `tiny`: random weights, real words. Treat it as read-only: later runs use it again."""
    return exported("tiny")


@pytest.fixture(scope="session")
def small_bundle(small_weights: Path) -> Path:
    """The bundle of the preset `small` with the shipped weights; the test is skipped where none are shipped.

    Without the Llama, which takes minutes and a gigabyte to export.
    """
    from mechm.model.build import pretrained_folder
    from mechm_runtime.errors import WeightsError

    try:
        trained = pretrained_folder("small")
    except WeightsError as error:
        pytest.skip(str(error))
    return exported("small", trained)


def exported(preset: str, trained: Path | None = None) -> Path:
    """A preset's bundle, made once per state of the sources and kept in the cache folder for the next run."""
    files = [path for name in BUNDLE_SOURCES for path in files_of(REPOSITORY / name)] + files_of(trained)
    digest = hashlib.sha256("".join(f"{name} {version(name)}\n" for name in BUNDLE_PACKAGES).encode())
    for path in files:
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    folder = cache_dir() / "tests" / f"{preset}-{digest.hexdigest()[:16]}"
    command = [sys.executable, "-c", "from mechm.cli import main; main()", "export", "bundle"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f"{preset}.lock"):  # the test workers start at the same time
        if not (folder / "bundle.json").is_file():
            # The export renames its folder into place when it is whole, so what is there is whole.
            # Random weights answer with near ties: on a CPU without VNNI instructions int8 may change one label more
            # than the gate allows, and the tests need its files.
            lenient = ["--accept-quality-loss"] if preset == "tiny" else []
            done = subprocess.run(
                [*command, "--preset", preset, "--adapter", "none", "--out", str(folder), *lenient],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                pytest.fail(f"no bundle of preset {preset}:\n{done.stdout}{done.stderr}")
        os.utime(folder)
        for other in folder.parent.glob(f"{preset}-*"):
            if time.time() - other.stat().st_mtime > KEPT_BUNDLES_S:
                shutil.rmtree(other, ignore_errors=True)
    return folder


def files_of(path: Path | None) -> list[Path]:
    """A file, or the files below a folder, in order."""
    if path is None or path.is_file():
        return [] if path is None else [path]
    return sorted(p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WordPiece `tokenizer.json` of a few hundred pieces, learnt from the conversations exports are checked on."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    from mechm_export.check_data import check_conversations

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 - a word piece, no password
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    said = [f"{u.speaker}: {u.text}" for c in check_conversations() for u in c.conversation.utterances]
    tokenizer.train_from_iterator(said, trainers.WordPieceTrainer(vocab_size=800, special_tokens=special))
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path
