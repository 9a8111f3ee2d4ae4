"""vLLM in a process of one's own: answers as the graph, or torch, does, with soft tokens and a few tokens at a time."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mechm.llm.combination import LLAMA_FOLDER
from mechm.llm.merge import merge_adapter
from mechm.llm.packed import TorchLlama
from mechm.llm.scorer import AnswerScores, load_merged
from mechm.model.build import pretrained_folder
from mechm_export.bundle.report import BundleReport
from mechm_export.check_data import check_conversations
from mechm_export.vllm.served import _put_in_place, add_served_llama
from mechm_runtime.bundle.config import QuestionConfig
from mechm_runtime.bundle.manifest import LLAMA
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.llm.graph import LlamaGraph
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.llm.scorer import LlamaScorer, LlamaScores, SoftTokens
from mechm_runtime.types import Utterance

TOLERANCE = 2e-3
"""Of log-probabilities, both in fp32: rounding alone makes 1e-5."""
LIMIT_S = 240

ASK = """
import sys
from pathlib import Path
import numpy as np
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.llm.scorer import LlamaScorer, SoftTokens
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.llm.vllm.launch_plan import ServeConfig
from mechm_runtime.llm.vllm.in_process import InProcessVllm
from mechm_runtime.types import Utterance

bundle = open_bundle(Path(sys.argv[1]), check_hashes=False)
questions = QuestionTokenizer(bundle.path(bundle.llama.tokenizer), bundle.llama.questions)
engine = InProcessVllm(bundle, questions, ServeConfig(concurrency=8, step_tokens=int(sys.argv[4])))
scorer = LlamaScorer(questions, engine, 64)
given = np.load(sys.argv[2])
talk = [Utterance(i, "AB"[i % 2], str(text)) for i, text in enumerate(given["texts"], 1)]
asked = {"words": None}
if "tokens" in given:
    asked["told"] = SoftTokens(given["tokens"], given["evident"])
found = {}
for name, soft in asked.items():
    scores = scorer.score(talk, soft)
    found |= {f"{name}_emotions": scores.emotions, f"{name}_causes": scores.causes}
for harmful in (np.full((1, 64), np.nan, np.float32), np.zeros((1, 63), np.float32)):
    try:
        engine.run({"soft_at": np.array([3]), "soft_tokens": harmful, "input_ids": np.ones((1, 9), int),
                    "segments": np.zeros((1, 9), int), "emotion_at": np.array([7]), "cause_at": np.array([8])})
        raise SystemExit("harmful soft tokens were accepted")
    except ValueError:
        pass
np.savez(sys.argv[3], **found)
"""


def ask(
    python: str, bundle: Path, folder: Path, given: Mapping[str, Any], step_tokens: int
) -> Mapping[str, npt.NDArray[np.float32]]:
    """Answers of vLLM, in a process of its own: emotions and causes, about the words alone and with soft tokens."""
    np.savez(folder / "given.npz", **given)
    files = [str(folder / "given.npz"), str(folder / "found.npz"), str(step_tokens)]
    done = subprocess.run(
        [python, "-c", ASK, str(bundle), *files], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(np.load(folder / "found.npz"))


def compare(found: Mapping[str, npt.NDArray[np.float32]], name: str, expected: LlamaScores) -> None:
    np.testing.assert_allclose(found[f"{name}_emotions"], expected.emotions, atol=TOLERANCE)
    np.testing.assert_allclose(found[f"{name}_causes"], expected.causes, atol=TOLERANCE)


def talk_of(texts: list[str]) -> list[Utterance]:
    return [Utterance(i, "AB"[i % 2], text) for i, text in enumerate(texts, 1)]


@pytest.mark.vllm
def test_it_answers_as_the_graph_does_a_few_tokens_at_a_time(vllm_python: str, served: Path, tmp_path: Path) -> None:
    """With prompts that take several steps to read (chunked prefill), and with soft tokens among their words."""
    random = np.random.default_rng(0)
    texts = [f"I never told you what happened on the {number} of May, did I?" for number in range(6)]
    soft = SoftTokens(random.normal(size=(6, 2, 64)).astype(np.float32), np.array([1, 0, 1, 0, 0, 1], bool))
    given = {"texts": texts, "tokens": soft.tokens, "evident": soft.has_nonverbal}
    found = ask(vllm_python, served, tmp_path, given, step_tokens=32)
    bundle = open_bundle(served, check_hashes=False)
    assert bundle.llama is not None
    questions = QuestionTokenizer(bundle.path(bundle.llama.tokenizer), bundle.llama.questions)
    part = bundle.parts[LLAMA]
    engine = LlamaGraph(OnnxRuntimeEngine(bundle.path(part.files["fp32"]), EngineConfig(n_threads=1)), part)
    graph = LlamaScorer(questions, engine, 64)
    compare(found, "words", graph.score(talk_of(texts)))
    compare(found, "told", graph.score(talk_of(texts), soft))
    assert np.abs(found["told_emotions"] - found["words_emotions"]).max() > 4 * TOLERANCE


@pytest.mark.vllm
@pytest.mark.weights
def test_the_shipped_llama_answers_as_in_torch(
    vllm_python: str, served: Path, small_weights: Path, tmp_path: Path
) -> None:
    """SmolLM2-135M with the shipped adapter merged, in place of the tiny one; the tokenizer is the same."""
    adapter, base = pretrained_folder("small") / LLAMA_FOLDER, small_weights / "llm"
    folder = tmp_path / "bundle"
    shutil.copytree(served, folder)
    report = merge_adapter(adapter, base, tmp_path / "merged", dtype="fp32")
    _put_in_place(open_bundle(folder), tmp_path / "merged", report, "none")
    texts = [u.text or "" for u in check_conversations()[0].conversation.utterances]
    found = ask(vllm_python, folder, tmp_path, {"texts": texts}, step_tokens=512)
    questions = QuestionTokenizer(base / "tokenizer.json", QuestionConfig(soft_tokens=2))
    scores = AnswerScores(load_merged(base, adapter), questions).eval()
    expected = LlamaScorer(questions, TorchLlama(scores), scores.hidden_size).score(talk_of(texts))
    compare(found, "words", expected)
    np.testing.assert_array_equal(found["words_emotions"].argmax(-1), expected.emotions.argmax(-1))


@pytest.mark.vllm
def test_it_multiplies_in_8_bits(
    vllm_python: str,
    report: BundleReport,
    adapter: Path,
    llama_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mechm_export.gate.comparison.ALLOWED_LABELS", 6)  # random weights answer with near ties
    folder = tmp_path / "bundle"
    shutil.copytree(report.bundle.folder, folder)
    add_served_llama(folder, adapter, llama_base, quantization="int8")
    texts = [u.text or "" for u in check_conversations()[0].conversation.utterances]
    found = ask(vllm_python, folder, tmp_path, {"texts": texts}, step_tokens=512)
    questions = QuestionTokenizer(llama_base / "tokenizer.json", QuestionConfig(soft_tokens=2))
    scores = AnswerScores(load_merged(llama_base, adapter), questions).eval()
    expected = LlamaScorer(questions, TorchLlama(scores), scores.hidden_size).score(talk_of(texts))
    assert 1e-4 < np.abs(found["words_emotions"] - expected.emotions).max() < 0.05
    assert 1e-4 < np.abs(found["words_causes"] - expected.causes).max() < 0.05
