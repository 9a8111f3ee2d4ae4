"""The Llama's graph as it is written by hand, and what it remembers of a conversation that grows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from mechm.llm.packed import PackedLlama, TorchLlama
from mechm_export.bundle.report import BundleReport
from mechm_export.check_data import check_conversations
from mechm_export.graphs.part import ExportPart
from mechm_export.llama.graph import check_architecture, write_llama_graph
from mechm_export.llama.part import LlamaSource, llama_parts, load_llama_source
from mechm_runtime.bundle.manifest import LLAMA, PartFiles
from mechm_runtime.bundle.precision import PORTABLE_INT8
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.errors import BundleError, VerificationError
from mechm_runtime.llm.graph import LlamaGraph
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.llm.scorer import LlamaScorer, SoftTokens, graph_inputs
from mechm_runtime.types import Utterance

ONE_THREAD = EngineConfig(n_threads=1)
ANSWERS = ("emotion_log_probabilities", "cause_log_probabilities")
ROUNDING = 2e-3
"""Keys and values are remembered in float16."""


@pytest.fixture(scope="module")
def source(adapter: Path, trained: Path, llama_base: Path) -> LlamaSource:
    return load_llama_source(llama_base, adapter, trained)


@pytest.fixture(scope="module")
def part(source: LlamaSource) -> ExportPart:
    return next(part for part in llama_parts(source) if part.name == LLAMA)


@pytest.fixture(scope="module")
def graph(report: BundleReport) -> LlamaGraph:
    files = report.bundle.parts[LLAMA]
    return LlamaGraph(OnnxRuntimeEngine(report.bundle.path(files.files["fp32"]), ONE_THREAD), files)


@pytest.fixture(scope="module")
def talk() -> tuple[Utterance, ...]:
    return next(one.conversation.utterances for one in check_conversations() if len(one.conversation.utterances) > 7)


def asked(source: LlamaSource, talk: tuple[Utterance, ...], at: list[int], soft: SoftTokens | None = None):
    tokenizer = QuestionTokenizer(source.tokenizer, source.questions)
    if soft is None:
        soft = SoftTokens(np.zeros((len(talk), 2, 64), np.float32), np.zeros(len(talk), bool))
    return graph_inputs(tokenizer.pack(talk, at, soft.has_nonverbal.tolist()), soft.tokens)


def test_what_was_read_before_answers_as_if_it_were_read_again(
    source: LlamaSource, part: ExportPart, graph: LlamaGraph, talk: tuple[Utterance, ...]
) -> None:
    growing = graph.with_cache()
    lengths = []
    for n in range(1, len(talk) + 1):
        inputs = asked(source, talk[:n], [n - 1])
        anew = TorchLlama(source.scores).run(inputs)
        found = growing.run(inputs)
        lengths.append(found["present"].shape[2])
        for name in ANSWERS:
            np.testing.assert_allclose(found[name], anew[name], atol=ROUNDING)
    assert growing.n_tokens == sum(lengths)
    assert max(lengths) < growing.n_tokens / 2
    assert growing.n_bytes >= growing.n_tokens * found["present"].nbytes / lengths[-1]


def test_a_question_alone_reads_nothing_again(
    source: LlamaSource, graph: LlamaGraph, talk: tuple[Utterance, ...]
) -> None:
    growing = graph.with_cache()
    growing.run(asked(source, talk, [0]))
    inputs = asked(source, talk, [3, 5])
    found = growing.run(inputs)
    assert found["present"].shape[2] == 0
    for name in ANSWERS:
        np.testing.assert_allclose(found[name], graph.run(inputs)[name], atol=ROUNDING)


def test_what_changed_is_read_again(source: LlamaSource, graph: LlamaGraph, talk: tuple[Utterance, ...]) -> None:
    growing = graph.with_cache()
    growing.run(asked(source, talk, [0]))
    corrected = (*talk[:3], replace(talk[3], text="No, that is not what I meant at all."), *talk[4:6])
    inputs = asked(source, corrected, [5])
    found, anew = growing.run(inputs), graph.run(inputs)
    for name in ANSWERS:
        np.testing.assert_allclose(found[name], anew[name], atol=ROUNDING)
    assert 0 < found["present"].shape[2] < anew["present"].shape[2]


def test_other_soft_tokens_are_read_again(source: LlamaSource, graph: LlamaGraph, talk: tuple[Utterance, ...]) -> None:
    growing = graph.with_cache()
    random = np.random.default_rng(0)
    heard = SoftTokens(random.normal(size=(6, 2, 64)).astype(np.float32), np.array([1, 0, 1, 1, 0, 1], bool))
    growing.run(asked(source, talk[:6], [5], heard))
    again = asked(source, talk[:6], [4], heard)
    assert growing.run(again)["present"].shape[2] == 0
    tokens = heard.tokens.copy()
    tokens[2] = random.normal(size=(2, 64))
    other = asked(source, talk[:6], [5], replace(heard, tokens=tokens))
    found, anew = growing.run(other), graph.run(other)
    assert found["present"].shape[2] > 0
    for name in ANSWERS:
        np.testing.assert_allclose(found[name], anew[name], atol=ROUNDING)


def test_a_word_is_not_taken_for_the_soft_token_in_its_place(
    source: LlamaSource, graph: LlamaGraph, talk: tuple[Utterance, ...]
) -> None:
    growing = graph.with_cache()
    heard = SoftTokens(np.ones((6, 2, 64), np.float32), np.ones(6, bool))
    told = asked(source, talk[:6], [5], heard)
    growing.run(told)
    words = {**told, "soft_at": told["soft_at"][:0], "soft_tokens": told["soft_tokens"][:0]}
    found, anew = growing.run(words), graph.run(words)
    assert found["present"].shape[2] > 0
    for name in ANSWERS:
        np.testing.assert_allclose(found[name], anew[name], atol=ROUNDING)


def test_many_questions_equal_one_by_one(source: LlamaSource, graph: LlamaGraph, talk: tuple[Utterance, ...]) -> None:
    together = graph.run(asked(source, talk, list(range(len(talk)))))
    for position in range(len(talk)):
        alone = graph.run(asked(source, talk, [position]))
        for name in ANSWERS:
            np.testing.assert_allclose(together[name][position], alone[name][0], atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "int8", PORTABLE_INT8])
def test_a_precision_is_what_it_says(part: ExportPart, precision: str, tmp_path: Path) -> None:
    path = tmp_path / "llama.onnx"
    write_llama_graph(part, path, precision, 256)
    model = onnx.load(path)
    domains = {node.domain for node in model.graph.node}
    assert domains == ({"", "com.microsoft"} if precision == "int8" else {""})
    layers = part.module
    assert isinstance(layers, PackedLlama)
    n_linears = 7 * len(layers.scores.causal.model.layers)
    weights = [i for i in model.graph.initializer if i.name.endswith("_proj_int8")]
    assert len(weights) == (0 if precision == "fp32" else n_linears)
    assert all(weight.data_type == onnx.TensorProto.INT8 for weight in weights)
    again = tmp_path / "again.onnx"
    write_llama_graph(part, again, precision, 256)
    assert again.read_bytes() == path.read_bytes()


def test_eight_bits_stay_close_in_answers(
    source: LlamaSource, part: ExportPart, talk: tuple[Utterance, ...], tmp_path: Path
) -> None:
    path = tmp_path / "llama.onnx"
    write_llama_graph(part, path, "int8", 2048)
    files = PartFiles(part.name, part.inputs, part.outputs, {}, "")
    inputs = asked(source, talk, [0, 2, 4])
    found, expected = (
        LlamaGraph(OnnxRuntimeEngine(path, ONE_THREAD), files).run(inputs),
        TorchLlama(source.scores).run(inputs),
    )
    for name in ANSWERS:
        difference = np.abs(found[name] - expected[name]).max()
        assert 0 < difference < 0.2


def test_positions_end_where_the_tables_do(
    source: LlamaSource, part: ExportPart, talk: tuple[Utterance, ...], tmp_path: Path
) -> None:
    path = tmp_path / "llama.onnx"
    write_llama_graph(part, path, "fp32", 32)
    files = PartFiles(part.name, part.inputs, part.outputs, {}, "")
    with pytest.raises(Exception, match="out of"):
        LlamaGraph(OnnxRuntimeEngine(path, ONE_THREAD), files).run(asked(source, talk, [0]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "qwen2"}, "written for model type llama, this is qwen2"),
        ({"model_type": "llama", "attention_bias": True}, "attention_bias False, not True"),
        ({"model_type": "llama", "hidden_act": "gelu"}, "hidden_act silu, not gelu"),
    ],
)
def test_other_architectures_are_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        check_architecture(SimpleNamespace(**config))


def test_a_part_without_room_for_what_was_read_is_refused(report: BundleReport) -> None:
    files = report.bundle.parts[LLAMA]
    without = replace(files, inputs=tuple(tensor for tensor in files.inputs if tensor.name != "past"))
    with pytest.raises(BundleError, match="takes no past"):
        LlamaGraph(OnnxRuntimeEngine(report.bundle.path(files.files["fp32"]), ONE_THREAD), without)


def test_a_reader_asks_through_the_memory_as_without_it(
    source: LlamaSource, graph: LlamaGraph, talk: tuple[Utterance, ...]
) -> None:
    tokenizer = QuestionTokenizer(source.tokenizer, source.questions)
    growing = graph.with_cache()
    for n in (2, 5, len(talk)):
        found = LlamaScorer(tokenizer, growing, 64).score(talk[:n])
        expected = LlamaScorer(tokenizer, graph, 64).score(talk[:n])
        np.testing.assert_allclose(found.emotions, expected.emotions, atol=ROUNDING)
        np.testing.assert_allclose(found.causes, expected.causes, atol=ROUNDING)
