"""A bundle with a Llama: its graph answers as torch does, and it is weighed against the fusion it was fitted with."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

from mechm.cli import cli
from mechm.llm.combination import LLAMA_FOLDER, is_adapter, read_combination
from mechm.llm.packed import TorchLlama
from mechm.model.build import build_network, pretrained_folder, save_trained
from mechm.model.config import TINY
from mechm_export.bundle.report import BundleReport
from mechm_export.bundle.verify import verify_bundle
from mechm_export.check_data import check_conversations
from mechm_export.llama.part import load_llama_source
from mechm_runtime.bundle.config import DecisionConfig
from mechm_runtime.bundle.manifest import LLAMA, MANIFEST, PROJECTOR, manifest_id
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.errors import BundleError, InputError, WeightsError
from mechm_runtime.fusion.combination import combine
from mechm_runtime.fusion.decision import decide
from mechm_runtime.llm.questions import QuestionTokenizer, pair_logits
from mechm_runtime.llm.scorer import LlamaScorer
from mechm_runtime.pipeline import Pipeline
from mechm_runtime.readers import read_transcript
from mechm_runtime.types import EMOTIONS, Analysis, Conversation, Utterance

ONE_THREAD = EngineConfig(n_threads=1)


def test_the_graph_equals_torch_and_the_bundle_says_how_it_is_asked(
    report: BundleReport, adapter: Path, trained: Path
) -> None:
    (check,) = (c for c in report.values if (c.part, c.precision) == (LLAMA, "fp32"))
    assert check.largest_difference < 1e-4
    bundle = report.bundle
    fitted = read_combination(adapter, trained)
    assert bundle.llama is not None
    assert (bundle.llama.combination, bundle.llama.decision) == (fitted.combination, fitted.decision)
    assert bundle.manifest[LLAMA]["card"] == {"data": "none"}
    assert {"adapter", "projector"} <= set(bundle.manifest["weights"])
    assert bundle.llama.questions.soft_tokens == 2
    (check,) = (c for c in report.values if (c.part, c.precision) == (PROJECTOR, "fp32"))
    assert check.largest_difference < 1e-4


def test_answers_are_those_of_fusion_and_llama_weighed(
    report: BundleReport, adapter: Path, trained: Path, llama_base: Path
) -> None:
    source = load_llama_source(llama_base, adapter, trained)
    scorer = LlamaScorer(QuestionTokenizer(source.tokenizer), TorchLlama(source.scores), source.scores.hidden_size)
    both = Pipeline(report.bundle, precisions=dict.fromkeys(report.bundle.parts, "fp32"), engine=ONE_THREAD)
    alone = Pipeline(
        replace(report.bundle, decision=DecisionConfig(pair_threshold=1e-9, neutral_log_bias=-100.0)),
        precisions=dict.fromkeys(report.bundle.parts, "fp32"),
        engine=ONE_THREAD,
        llm="none",
    )
    conversation = check_conversations()[0].conversation
    n = len(conversation.utterances)
    # Every pair is found by the fusion under these constants, so its scores can be read back from its answers.
    fusion = alone.analyze(conversation)
    logits = np.log([[u.probabilities[e] for e in EMOTIONS] for u in fusion.utterances]).astype(np.float32)
    pairs = np.full((n, n), -np.inf, np.float32)
    for pair in fusion.pairs:
        row = pair.emotion_utterance - 1
        given = pair.probability / fusion.utterances[row].probabilities[pair.emotion]
        pairs[row, pair.cause_utterance - 1] = np.log(given / (1 - given))
    assert np.isfinite(pairs).all()
    answers = scorer.score(conversation.utterances)
    llama = report.bundle.llama
    assert llama is not None
    weighed = combine((logits, pairs), (answers.emotions, pair_logits(answers.causes)), llama.combination)
    expected = decide(*weighed, llama.decision)
    found = both.analyze(conversation)
    probabilities = np.array([[u.probabilities[e] for e in EMOTIONS] for u in found.utterances])
    np.testing.assert_allclose(probabilities, expected.probabilities, atol=1e-4)
    assert [u.emotion for u in found.utterances] == [EMOTIONS[label] for label in expected.labels]
    assert {(p.emotion_utterance - 1, p.cause_utterance - 1) for p in found.pairs} == {
        (i, j) for i, j, _ in expected.pairs
    }
    assert found.timings_ms["llm"] > 0
    assert "llm" not in fusion.timings_ms


def test_without_words_the_fusion_answers_alone(report: BundleReport, repository: Path) -> None:
    sample = repository / "sample" / "conversation.mp4"
    pipeline = Pipeline(report.bundle, engine=ONE_THREAD)
    conversation = Conversation("c", (Utterance(1, "A", None, 0.0, 2.0),), sample)
    assert "llm" not in pipeline.analyze(conversation).timings_ms
    assert Pipeline(report.bundle, modalities=("audio",)).llm == "none"
    with pytest.raises(InputError, match="reads words"):
        Pipeline(report.bundle, modalities=("audio",), llm="onnx")


def test_an_utterance_without_words_keeps_what_the_fusion_says(report: BundleReport, repository: Path) -> None:
    sample = repository / "sample" / "conversation.mp4"
    utterances = (Utterance(1, "A", None, 0.0, 2.0), Utterance(2, "B", "What happened?", 3.0, 5.0))
    conversation = Conversation("c", utterances, sample)
    both, alone = (
        Pipeline(report.bundle, engine=ONE_THREAD, llm=llm).analyze(conversation) for llm in ("onnx", "none")
    )
    assert both.utterances[0].probabilities == pytest.approx(alone.utterances[0].probabilities, abs=1e-5)
    assert both.utterances[1].probabilities != pytest.approx(alone.utterances[1].probabilities, abs=1e-3)


def test_what_was_heard_and_seen_reaches_the_llama(
    report: BundleReport, adapter: Path, trained: Path, llama_base: Path, repository: Path
) -> None:
    """The pipeline's answers on a recording are those of torch, and not those on its words alone."""
    sample = repository / "sample"
    (conversation,) = read_transcript(sample / "conversation.srt", media=sample / "conversation.mp4")
    pipeline = Pipeline(report.bundle, precisions=dict.fromkeys(report.bundle.parts, "fp32"), engine=ONE_THREAD)
    asked: list[Mapping[str, npt.NDArray[Any]]] = []
    assert pipeline._rescorer is not None
    scorer = pipeline._rescorer.scorer
    engine = scorer.engine

    class Listening:
        def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
            asked.append(inputs)
            return engine.run(inputs)

    scorer.engine = Listening()
    pipeline.analyze(conversation)
    (inputs,) = asked
    n_told = 2 * 2 * len(conversation.utterances)  # two tokens, in the line and in the question
    assert inputs["soft_tokens"].shape == (n_told, 64)
    source = load_llama_source(llama_base, adapter, trained)
    expected = TorchLlama(source.scores).run(inputs)
    found = engine.run(inputs)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3 if name == "present" else 0, atol=1e-4)
    other = engine.run({**inputs, "soft_tokens": np.zeros_like(inputs["soft_tokens"])})
    assert np.abs(other["emotion_log_probabilities"] - found["emotion_log_probabilities"]).max() > 1e-4


def test_awaiting_it_gives_the_same_answers(report: BundleReport, repository: Path) -> None:
    (conversation,) = read_transcript(repository / "sample" / "conversation.srt")
    pipeline = Pipeline(report.bundle, engine=ONE_THREAD)
    stages: list[str] = []

    async def twice() -> list[Analysis]:
        told = pipeline.analyze_async(conversation, progress=lambda stage, done, total: stages.append(stage))
        return await asyncio.gather(told, pipeline.analyze_async(conversation))

    expected = pipeline.analyze(conversation)
    for found in asyncio.run(twice()):
        assert (found.utterances, found.pairs) == (expected.utterances, expected.pairs)
        assert found.timings_ms.keys() == expected.timings_ms.keys()
    assert {"text", "fusion", "llm"} <= set(stages)


def test_a_bundle_without_a_llama_says_so(tiny_bundle: Path) -> None:
    assert Pipeline.from_bundle(tiny_bundle, engine=ONE_THREAD).llm == "none"
    with pytest.raises(BundleError, match="no Llama") as caught:
        Pipeline.from_bundle(tiny_bundle, engine=ONE_THREAD, llm="onnx")
    assert "--adapter" in (caught.value.hint or "")


def test_verify_repeats_the_checks(report: BundleReport, trained: Path, adapter: Path, llama_base: Path) -> None:
    again = verify_bundle(report.bundle.folder, trained=trained, adapter=adapter, llm_base=llama_base)
    assert [c.part for c in again.values].count(LLAMA) == len(report.bundle.parts[LLAMA].files)


def test_a_fusion_that_it_was_not_weighed_against_is_refused(adapter: Path, llama_base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    save_trained(build_network(TINY, None, seed=5), DecisionConfig(), {}, other)
    with pytest.raises(WeightsError, match="another fusion"):
        load_llama_source(llama_base, adapter, other)
    with pytest.raises(WeightsError, match="no trained fusion"):
        load_llama_source(llama_base, adapter, tmp_path)


def test_what_is_no_adapter_is_refused_before_the_export(tmp_path: Path, trained: Path) -> None:
    arguments = ["export", "bundle", "--preset", "tiny", "--trained", str(trained), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, [*arguments, "--adapter", str(tmp_path)])
    assert isinstance(done.exception, InputError)
    assert not (tmp_path / "out").exists()


def test_a_manifest_that_names_no_graph_for_its_llama_is_damaged(report: BundleReport, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(report.bundle.folder, folder)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    del manifest["parts"][LLAMA]
    manifest["id"] = manifest_id(manifest["preset"], manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(BundleError, match="Llama"):
        open_bundle(folder)


@pytest.mark.weights
def test_the_shipped_llama_is_of_the_shipped_fusion_and_reads_plain_words(small_weights: Path) -> None:
    trained = pretrained_folder("small")
    if not is_adapter(trained / LLAMA_FOLDER):
        pytest.skip("no Llama is shipped")
    source = load_llama_source(small_weights / "llm", trained / LLAMA_FOLDER, trained)
    tokenizer = QuestionTokenizer(source.tokenizer, source.questions)
    utterances = (
        Utterance(1, "Anna", "Hello."),
        Utterance(2, "Ben", "I got the job! I am so happy!"),
        Utterance(3, "Anna", "That is wonderful, congratulations!"),
        Utterance(4, "Ben", "The meeting is on Tuesday at ten."),
    )
    answers = LlamaScorer(tokenizer, TorchLlama(source.scores), source.scores.hidden_size).score(utterances)
    decision = decide(answers.emotions, pair_logits(answers.causes), source.fitted.decision)
    assert [EMOTIONS[label] for label in decision.labels] == ["neutral", "joy", "joy", "neutral"]
    assert (2, 1) in {(i, j) for i, j, _ in decision.pairs}
