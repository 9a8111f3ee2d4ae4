"""The Llama as one graph: it answers as the scorer does, asked together or alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mechm.llm.packed import TorchLlama
from mechm.llm.scorer import AnswerScores, load_llama, make_question_batch
from mechm_runtime.bundle.config import QuestionConfig
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.llm.scorer import LlamaScorer, graph_inputs
from mechm_runtime.types import Utterance

UTTERANCES = tuple(
    Utterance(i + 1, "AB"[i % 2], text)
    for i, text in enumerate(("Hi.", "You told her everything!", None, "Oh. Sorry.", "It is fine. No, it is not."))
)

NO_SOFT_TOKENS = np.zeros((len(UTTERANCES), 0, 64), np.float32)


@pytest.fixture(scope="module")
def scores(llama_base: Path) -> AnswerScores:
    tokenizer = QuestionTokenizer(llama_base / "tokenizer.json")
    return AnswerScores(load_llama(llama_base, torch.float32), tokenizer).eval()


def test_segments_say_what_sees_what(scores: AnswerScores, llama_base: Path) -> None:
    packed = QuestionTokenizer(llama_base / "tokenizer.json").pack(UTTERANCES, [0, 1, 4])
    with torch.inference_mode():
        expected = [logits.log_softmax(-1).numpy() for logits in scores(make_question_batch([packed]))]
    answers = TorchLlama(scores).run(graph_inputs(packed, NO_SOFT_TOKENS))
    np.testing.assert_allclose(answers["emotion_log_probabilities"], expected[0], atol=1e-5)
    np.testing.assert_allclose(answers["cause_log_probabilities"], expected[1], atol=1e-5)


def test_asking_together_answers_as_asking_alone(scores: AnswerScores, llama_base: Path) -> None:
    tokenizer, engine = QuestionTokenizer(llama_base / "tokenizer.json"), TorchLlama(scores)
    together = LlamaScorer(tokenizer, engine, scores.hidden_size).score(UTTERANCES)
    for position in np.flatnonzero(together.asked):
        alone = engine.run(graph_inputs(tokenizer.pack(UTTERANCES, [int(position)]), NO_SOFT_TOKENS))
        np.testing.assert_allclose(together.emotions[position], alone["emotion_log_probabilities"][0], atol=1e-5)
        np.testing.assert_allclose(together.causes[position], alone["cause_log_probabilities"][0], atol=1e-5)


def test_soft_tokens_are_read_in_the_place_of_words(scores: AnswerScores, llama_base: Path) -> None:
    tokenizer = QuestionTokenizer(llama_base / "tokenizer.json", QuestionConfig(soft_tokens=2))
    evident = [False, True, True, False, False]
    packed = tokenizer.pack(UTTERANCES, [0, 1, 4], evident)
    # Soft tokens that are the embeddings of words answer as those words.
    words = tokenizer.emotion_answers[:2]
    spoken = replace(packed, input_ids=packed.input_ids.copy(), soft_at=packed.soft_at[:0], soft_of=packed.soft_of[:0])
    spoken.input_ids[packed.soft_at] = np.tile(words, len(packed.soft_at) // 2)
    embeddings = scores.causal.get_input_embeddings().weight.detach().numpy()
    soft = np.broadcast_to(embeddings[words], (len(UTTERANCES), 2, scores.hidden_size))
    engine = TorchLlama(scores)
    found = engine.run(graph_inputs(packed, soft))
    expected = engine.run(graph_inputs(spoken, NO_SOFT_TOKENS))
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5)
    with torch.inference_mode():
        at_once = scores(
            make_question_batch([packed, packed]), torch.from_numpy(np.tile(soft[0], (6, 1)))[: 2 * len(packed.soft_at)]
        )
    np.testing.assert_allclose(at_once[0][3:].log_softmax(-1).numpy(), expected["emotion_log_probabilities"], atol=1e-5)
