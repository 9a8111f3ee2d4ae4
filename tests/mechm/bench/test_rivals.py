"""Rivals answer from the same weights, so that without a Llama they say what ours says in fp32."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import numpy as np
import pytest

from mechm.bench.rivals import RivalConfig, make_rival
from mechm.bench.rivals.generators import ServerGenerator, TransformersGenerator, emotion_of, generation_prompt
from mechm.bench.rivals.per_utterance import GENERATED_TOKENS, PerUtteranceSystem
from mechm.bench.workload import sample_conversation, text_only, with_length
from mechm.cli.options.inputs import load_conversations
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.errors import InputError
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.llm.vllm.config import ServerConfig
from mechm_runtime.pipeline import Pipeline
from mechm_runtime.types import Analysis, Conversation, Utterance

TALK = (Utterance(1, "Ana", "I got the job!"), Utterance(2, "Ben", "No way, congratulations!"))


def probabilities(analysis: Analysis) -> np.ndarray:
    return np.array([list(u.probabilities.values()) for u in analysis.utterances])


@pytest.fixture(scope="module")
def recorded() -> Conversation:
    """The sample's first utterances, with their recording."""
    return with_length(load_conversations(*sample_conversation())[0], 2)


@pytest.mark.weights
@pytest.mark.parametrize("baseline", ["original", "glue"])
def test_a_rival_says_what_ours_says(baseline: Any, small_bundle: Path, recorded: Conversation) -> None:
    bundle = open_bundle(small_bundle)
    rival = make_rival(baseline, bundle, RivalConfig(n_threads=1, generates=False))
    rival.prepare()
    ours = Pipeline.from_bundle(small_bundle, precision="fp32", engine=EngineConfig(n_threads=1), llm="none")
    for conversation, atol in ((text_only(recorded), 1e-3), (recorded, 0.02)):
        theirs = rival.analyze(conversation)
        expected = ours.analyze(conversation)
        # Padding to 30 s changes the last frames of a spectrogram, which are mirrored otherwise.
        np.testing.assert_allclose(probabilities(theirs), probabilities(expected), atol=atol)
        assert [u.emotion for u in theirs.utterances] == [u.emotion for u in expected.utterances]
        assert [u.modalities for u in theirs.utterances] == [u.modalities for u in expected.utterances]
        assert [(p.emotion_utterance, p.cause_utterance) for p in theirs.pairs] == [
            (p.emotion_utterance, p.cause_utterance) for p in expected.pairs
        ]
    assert {"text", "decode", "audio", "face", "fusion"} <= set(theirs.timings_ms)
    assert "scene" not in theirs.timings_ms, "it reads what ours reads"
    assert "llm" not in theirs.timings_ms


def test_a_rival_reads_what_it_is_asked_to(tiny_bundle: Path, recorded: Conversation) -> None:
    bundle = open_bundle(tiny_bundle)
    for modalities in (("text",), ("audio", "scene"), ("text", "face", "scene")):
        rival = make_rival("glue", bundle, RivalConfig(n_threads=1, generates=False, modalities=modalities))
        rival.prepare()
        ours = Pipeline(bundle, precisions=dict.fromkeys(bundle.parts, "fp32"), llm="none", modalities=modalities)
        theirs, expected = rival.analyze(recorded), ours.analyze(recorded)
        assert [u.modalities for u in theirs.utterances] == [u.modalities for u in expected.utterances]
        assert set(theirs.timings_ms) >= set(modalities) - {"text"}
        assert not set(theirs.timings_ms) & ({"audio", "face", "scene"} - set(modalities))


def test_what_is_written_stands_in_the_place_of_the_fusions_answer(tiny_bundle: Path) -> None:
    class Sad:
        def __init__(self) -> None:
            self.asked: list[tuple[int, int]] = []

        def answer(self, utterances: Any, position: int, n_tokens: int) -> str | None:
            self.asked.append((position, n_tokens))
            return "sadness" if position == 1 else None

    bundle = open_bundle(tiny_bundle)
    plain = make_rival("glue", bundle, RivalConfig(n_threads=1, generates=False))
    plain.prepare()
    writer = Sad()
    writing = PerUtteranceSystem("x", bundle, lambda: (plain._parts, writer), llama="Llama", pads=True)
    writing.prepare()
    conversation = Conversation("1", (*TALK, Utterance(3, "Ana", " ")))
    expected, found = plain.analyze(conversation), writing.analyze(conversation)
    assert writer.asked == [(0, GENERATED_TOKENS), (1, GENERATED_TOKENS)], "nobody asks about what has no words"
    assert found.utterances[1].emotion == "sadness"
    assert found.utterances[0].probabilities == expected.utterances[0].probabilities
    assert "llm" in found.timings_ms
    assert (writing.name, writing.llm) == ("x, Llama writes", True)
    assert (writing.without_llama().name, writing.without_llama().llm) == ("x, no Llama", False)


def test_the_llama_writes_as_many_tokens_as_are_asked_for(llama_base: Path) -> None:
    from transformers import AutoModelForCausalLM

    questions = QuestionTokenizer(llama_base / "tokenizer.json")
    writer = TransformersGenerator(AutoModelForCausalLM.from_pretrained(llama_base), questions)
    prompt = generation_prompt(questions, TALK, 1)
    twenty = writer.generate(prompt)
    assert len(twenty) == GENERATED_TOKENS
    assert writer.generate(prompt, 1) == twenty[:1], "the first token does not depend on how many follow"


def test_the_first_token_decides_what_was_written(llama_base: Path) -> None:
    questions = QuestionTokenizer(llama_base / "tokenizer.json")
    fear, joy = questions.emotion_answers.tolist()[3:5]
    assert emotion_of(questions, [joy, fear]) == "joy"
    assert emotion_of(questions, [0, joy]) is None
    assert emotion_of(questions, []) is None


class Answering(BaseHTTPRequestHandler):
    asked: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        content = json.dumps({"choices": [{"text": " joy is here"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        return None


@pytest.fixture
def server() -> Iterator[str]:
    Answering.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as listening:
        Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def test_a_server_writes_and_remembers_one_conversation_only(server: str, llama_base: Path) -> None:
    questions = QuestionTokenizer(llama_base / "tokenizer.json")
    writer = ServerGenerator(ServerConfig(server), questions)
    assert [writer.answer(TALK, position, 7) for position in (0, 1, 0)] == ["joy"] * 3
    first, second, again = Answering.asked
    assert first["prompt"] == generation_prompt(questions, TALK, 0)
    assert first["max_tokens"] == 7
    assert first["cache_salt"] == second["cache_salt"] != again["cache_salt"]


def test_a_rival_that_cannot_answer_as_asked_is_refused(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    with pytest.raises(InputError, match="has no Llama"):
        make_rival("original", bundle, RivalConfig(n_threads=1, generates=True))
