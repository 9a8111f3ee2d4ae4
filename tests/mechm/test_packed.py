"""The Llama as one graph: it answers as the scorer does, asked together or alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mechm.llm.packed import TorchLlama
from mechm.llm.scorer import AnswerScores, load_llama, make_question_batch
from mechm_runtime.llama import LlamaReader, graph_inputs
from mechm_runtime.questions import QuestionTokenizer
from mechm_runtime.types import Utterance

UTTERANCES = tuple(
    Utterance(i + 1, "AB"[i % 2], text)
    for i, text in enumerate(("Hi.", "You told her everything!", None, "Oh. Sorry.", "It is fine. No, it is not."))
)


@pytest.fixture(scope="module")
def scores(llama_base: Path) -> AnswerScores:
    tokenizer = QuestionTokenizer(llama_base / "tokenizer.json")
    return AnswerScores(load_llama(llama_base, torch.float32), tokenizer).eval()


def test_segments_say_what_sees_what(scores: AnswerScores, llama_base: Path) -> None:
    packed = QuestionTokenizer(llama_base / "tokenizer.json").pack(UTTERANCES, [0, 1, 4])
    with torch.inference_mode():
        expected = [logits.log_softmax(-1).numpy() for logits in scores(make_question_batch([packed]))]
    answers = TorchLlama(scores).run(graph_inputs(packed))
    np.testing.assert_allclose(answers["emotion_log_probabilities"], expected[0], atol=1e-5)
    np.testing.assert_allclose(answers["cause_log_probabilities"], expected[1], atol=1e-5)


def test_asking_together_answers_as_asking_alone(scores: AnswerScores, llama_base: Path) -> None:
    tokenizer, engine = QuestionTokenizer(llama_base / "tokenizer.json"), TorchLlama(scores)
    together = LlamaReader(tokenizer, engine).read(UTTERANCES)
    for position in np.flatnonzero(together.asked):
        alone = engine.run(graph_inputs(tokenizer.pack(UTTERANCES, [int(position)])))
        np.testing.assert_allclose(together.emotions[position], alone["emotion_log_probabilities"][0], atol=1e-5)
        np.testing.assert_allclose(together.causes[position], alone["cause_log_probabilities"][0], atol=1e-5)
