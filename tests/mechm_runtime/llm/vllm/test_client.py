"""The client of a server: what it asks, what it makes of any answer, and when it gives up. The servers here misbehave
on purpose; that a real vLLM answers as the graph does is in tests/mechm_export/test_served.py."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file

from mechm_runtime.errors import InputError, LlmUnavailableError
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.llm.scorer import graph_inputs
from mechm_runtime.llm.vllm.client import VllmClient
from mechm_runtime.llm.vllm.config import MODEL, ServerConfig
from mechm_runtime.llm.vllm.connection import MAX_ANSWER_BYTES
from mechm_runtime.llm.vllm.embeddings import EMBEDDINGS, WEIGHTS, EmbeddingTable
from mechm_runtime.llm.vllm.prompts import make_prompts
from mechm_runtime.types import Utterance

TALK = (Utterance(1, "A", "I got the job!"), Utterance(2, "B", "No way! Congratulations."))
SECRET = "open sesame"  # noqa: S105

Reply = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


@pytest.fixture(scope="module")
def tokenizer(small_weights: Path) -> QuestionTokenizer:
    return QuestionTokenizer(small_weights / "llm" / "tokenizer.json")


@pytest.fixture(scope="module")
def inputs(tokenizer: QuestionTokenizer) -> dict[str, npt.NDArray[Any]]:
    return graph_inputs(tokenizer.pack(TALK, [0, 1]), np.zeros((2, 0, 8), np.float32))


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def answer(body: dict[str, Any], value: Callable[[int], Any] = lambda token: -1.0 - token % 7) -> dict[str, Any]:
    tokens = body["logprob_token_ids"]
    found = {f"token_id:{token}": value(token) for token in tokens}
    n_prompts = len(body.get("prompt") or body["prompt_embeds"])
    return {"choices": [{"index": i, "logprobs": {"top_logprobs": [found]}} for i in reversed(range(n_prompts))]}


def well(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    send(handler, json.dumps(answer(body)).encode())


@contextmanager
def server(reply: Reply) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that answers questions with `reply`, and what it was asked."""
    seen: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            known = self.headers.get("Authorization") in (None, f"Bearer {SECRET}")
            send(self, json.dumps({"data": [{"id": MODEL}]}).encode(), 200 if known else 401)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
            reply(self, body)

        def log_message(self, *_: Any) -> None:
            return None

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            return None  # a client that gave up

    listening = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}", seen
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


@contextmanager
def client(
    url: str, tokenizer: QuestionTokenizer, embeddings: EmbeddingTable | None = None, **settings: Any
) -> Iterator[VllmClient]:
    asked = VllmClient(ServerConfig(url, **{"timeout_s": 5.0, "backoff_s": 1e-6, **settings}), tokenizer, embeddings)
    try:
        yield asked
    finally:
        asked.close()


def test_one_request_asks_every_question_for_one_token(
    tokenizer: QuestionTokenizer, inputs: dict[str, npt.NDArray[Any]]
) -> None:
    with server(well) as (url, seen), client(url, tokenizer, api_key=SECRET) as asked:
        asked.check()
        outputs = asked.run(inputs)
    (body,) = seen
    assert (body["path"], body["max_tokens"], body["key"]) == ("/v1/completions", 1, f"Bearer {SECRET}")
    assert len(body["prompt"]) == 4
    assert set(tokenizer.emotion_answers) | set(tokenizer.cause_answers) == set(body["logprob_token_ids"])
    expected = np.array([-1.0 - token % 7 for token in tokenizer.emotion_answers])
    expected -= np.log(np.exp(expected).sum())
    np.testing.assert_allclose(outputs["emotion_log_probabilities"], np.tile(expected, (2, 1)), rtol=1e-5)


def test_a_wrong_key_a_wrong_model_and_no_server_are_told_apart(tokenizer: QuestionTokenizer) -> None:
    with server(well) as (url, _):
        with client(url, tokenizer, api_key="wrong") as asked, pytest.raises(InputError, match="refuses the API key"):
            asked.check()
        with client(url, tokenizer, model="other") as asked, pytest.raises(InputError, match=f"serves {MODEL}, not"):
            asked.check()
    with client(url, tokenizer) as asked, pytest.raises(LlmUnavailableError, match="no Llama's server at"):
        asked.check()


def hang_up(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def test_what_is_no_vllm_server_is_said_to_be_none(tokenizer: QuestionTokenizer) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            send(self, b'{"data": "something else"}')

        def log_message(self, *_: Any) -> None:
            return None

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        with (
            client(f"http://127.0.0.1:{listening.server_port}", tokenizer) as asked,
            pytest.raises(LlmUnavailableError, match="is no vLLM server"),
        ):
            asked.check()
        listening.shutdown()
        thread.join()


def body_of(content: Any) -> Reply:
    return lambda handler, _: send(handler, content if isinstance(content, bytes) else json.dumps(content).encode())


def one_less(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    answered = answer(body)
    answered["choices"].pop()
    send(handler, json.dumps(answered).encode())


def one_twice(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    answered = answer(body)
    answered["choices"][0]["index"] = answered["choices"][1]["index"]
    send(handler, json.dumps(answered).encode())


def not_a_number(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    send(handler, json.dumps(answer(body, lambda token: float("nan"))).encode())


def fewer_tokens(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    send(handler, json.dumps(answer({**body, "logprob_token_ids": body["logprob_token_ids"][1:]})).encode())


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (body_of(b"<html>"), "no JSON"),
        (body_of(b"[" * 100_000), "no JSON"),
        (body_of([1, 2]), "no choices"),
        (body_of({"choices": [1]}), "no choices"),
        (body_of({"choices": [{"index": i, "logprobs": None} for i in range(4)]}), "no log-probabilities"),
        (body_of({"choices": [{"index": None}, {"index": "0"}, {}, {"index": 1.5}]}), "3 answers to 4 prompts"),
        (one_less, "3 answers to 4 prompts"),
        (one_twice, "3 answers to 4 prompts"),
        (not_a_number, "not a number"),
        (fewer_tokens, "no log-probability of the answer"),
        (body_of(b" " * (MAX_ANSWER_BYTES + 1)), "more than 16 MiB"),
        (lambda handler, _: send(handler, b"secret", 500), "status 500"),
        (lambda handler, _: send(handler, b"", 302), "status 302"),
    ],
)
def test_an_answer_of_another_form_is_no_answer(
    tokenizer: QuestionTokenizer, inputs: dict[str, npt.NDArray[Any]], reply: Reply, message: str
) -> None:
    with server(reply) as (url, seen), client(url, tokenizer) as asked:
        with pytest.raises(LlmUnavailableError, match=message) as caught:
            asked.run(inputs)
        assert len(seen) == 1  # it was answered: asking again would bring the same
    assert "job" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_what_is_refused_is_not_held_against_the_server(
    tokenizer: QuestionTokenizer, inputs: dict[str, npt.NDArray[Any]]
) -> None:
    replies = iter([lambda handler, _: send(handler, b"too long", 400), well])
    with (
        server(lambda handler, body: next(replies)(handler, body)) as (url, _),
        client(url, tokenizer, backoff_s=20.0) as it,
    ):
        with pytest.raises(LlmUnavailableError, match="status 400"):
            it.run(inputs)
        assert it.run(inputs)["emotion_log_probabilities"].shape == (2, 7)


def test_a_busy_server_and_a_closed_connection_are_asked_again(
    tokenizer: QuestionTokenizer, inputs: dict[str, npt.NDArray[Any]]
) -> None:
    replies = iter([lambda handler, _: send(handler, b"", 503), hang_up, well])
    with server(lambda handler, body: next(replies)(handler, body)) as (url, seen), client(url, tokenizer) as asked:
        assert asked.run(inputs)["emotion_log_probabilities"].shape == (2, 7)
        assert len(seen) == 3


def test_a_server_that_stays_busy_is_left_alone_for_a_while(
    tokenizer: QuestionTokenizer, inputs: dict[str, npt.NDArray[Any]]
) -> None:
    status = [503]
    reply: Reply = lambda handler, body: send(handler, b"", 503) if status[0] == 503 else well(handler, body)  # noqa: E731
    with server(reply) as (url, seen), client(url, tokenizer, n_retries=1, backoff_s=0.4, max_backoff_s=0.4) as asked:
        with pytest.raises(LlmUnavailableError, match="status 503"):
            asked.run(inputs)
        status[0] = 200
        with pytest.raises(LlmUnavailableError, match="it is asked again in"):
            asked.run(inputs)
        assert len(seen) == 2
        time.sleep(0.5)
        asked.run(inputs)
        asked.run(inputs)  # what worked has no rest to wait for
        assert len(seen) == 4


@pytest.mark.parametrize("drip", [False, True])
def test_a_server_that_is_too_slow_is_given_up_in_time(
    tokenizer: QuestionTokenizer, inputs: dict[str, npt.NDArray[Any]], drip: bool
) -> None:
    over = threading.Event()

    def slow(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if drip:
            handler.send_response(200)
            handler.send_header("Content-Length", "1000000")
            handler.end_headers()
            while not over.wait(0.05):
                handler.wfile.write(b" ")
                handler.wfile.flush()
        over.wait(20)

    with server(slow) as (url, seen), client(url, tokenizer, timeout_s=0.5) as asked:
        start = time.monotonic()
        with pytest.raises(LlmUnavailableError, match=r"took longer than 0\.5 s"):
            asked.run(inputs)
        assert time.monotonic() - start < 3
        over.set()
        assert len(seen) == 1  # it may still be working on it: asked again, it would work twice


def test_no_more_requests_than_allowed_are_under_way(
    tokenizer: QuestionTokenizer, inputs: dict[str, npt.NDArray[Any]]
) -> None:
    lock, now, most = threading.Lock(), [0], [0]

    def counted(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.05)
        with lock:
            now[0] -= 1
        well(handler, body)

    with server(counted) as (url, seen), client(url, tokenizer, max_in_flight=2, timeout_s=20.0) as asked:
        with ThreadPoolExecutor(8) as pool:
            shapes = [found["cause_log_probabilities"].shape for found in pool.map(asked.run, [inputs] * 8)]
        assert shapes == [(2, 14)] * 8
        assert len(seen) == 8
        assert most[0] == 2


def with_soft_tokens(inputs: dict[str, npt.NDArray[Any]], **changed: Any) -> dict[str, npt.NDArray[Any]]:
    return {**inputs, "soft_at": np.array([3]), "soft_tokens": np.full((1, 8), 0.5, np.float32), **changed}


@pytest.fixture(scope="module")
def embeddings(tokenizer: QuestionTokenizer, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingTable:
    folder = tmp_path_factory.mktemp("embeddings")
    save_file({EMBEDDINGS: torch.randn(50_000, 8).to(torch.bfloat16)}, folder / WEIGHTS)
    return EmbeddingTable(folder)


def test_soft_tokens_travel_among_the_embeddings_of_the_words(
    tokenizer: QuestionTokenizer, inputs: dict[str, npt.NDArray[Any]], embeddings: EmbeddingTable
) -> None:
    with server(well) as (url, seen), client(url, tokenizer, embeddings) as asked:
        assert asked.run(with_soft_tokens(inputs))["emotion_log_probabilities"].shape == (2, 7)
    (body,) = seen
    sent = [torch.load(io.BytesIO(base64.b64decode(one)), weights_only=True) for one in body["prompt_embeds"]]
    assert [len(one) for one in sent] == [len(one) for one in make_prompts(inputs)]
    assert all(torch.equal(one[3], torch.full((8,), 0.5, dtype=torch.bfloat16)) for one in sent)
    assert "prompt" not in body


def test_embeddings_that_are_too_many_for_one_request_travel_in_several(
    tokenizer: QuestionTokenizer,
    inputs: dict[str, npt.NDArray[Any]],
    embeddings: EmbeddingTable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with server(well) as (url, seen), client(url, tokenizer, embeddings) as asked:
        expected = asked.run(with_soft_tokens(inputs))
        monkeypatch.setattr("mechm_runtime.llm.vllm.completions.MAX_REQUEST_BYTES", 1)
        for name, found in asked.run(with_soft_tokens(inputs)).items():
            np.testing.assert_array_equal(found, expected[name])
    assert [len(body["prompt_embeds"]) for body in seen] == [4, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"soft_tokens": np.zeros((1, 7), np.float32)}, "of width 8"),
        ({"soft_tokens": np.full((1, 8), np.nan, np.float32)}, "not finite"),
    ],
)
def test_soft_tokens_that_would_harm_a_server_are_refused_before_anything_is_sent(
    tokenizer: QuestionTokenizer,
    inputs: dict[str, npt.NDArray[Any]],
    embeddings: EmbeddingTable,
    changed: dict[str, Any],
    message: str,
) -> None:
    with server(well) as (url, seen):
        with client(url, tokenizer, embeddings) as asked, pytest.raises(ValueError, match=message):
            asked.run(with_soft_tokens(inputs, **changed))
        with client(url, tokenizer) as asked, pytest.raises(ValueError, match="no embeddings"):
            asked.run(with_soft_tokens(inputs))
        assert not seen


def test_an_event_loop_goes_on_while_a_server_thinks(
    tokenizer: QuestionTokenizer, inputs: dict[str, npt.NDArray[Any]]
) -> None:
    def slowly(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        time.sleep(0.2)
        well(handler, body)

    async def ask(asked: VllmClient) -> tuple[list[dict[str, Any]], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        outputs = await asyncio.gather(*(asked.run_async(inputs) for _ in range(4)))
        ticking.cancel()
        return outputs, ticks

    with server(slowly) as (url, _), client(url, tokenizer) as asked:
        for _ in range(2):  # each `run` has an event loop of its own
            outputs, ticks = asyncio.run(ask(asked))
            assert len(outputs) == 4
            assert ticks > 5
        np.testing.assert_array_equal(
            outputs[0]["emotion_log_probabilities"], asked.run(inputs)["emotion_log_probabilities"]
        )


def test_who_no_longer_waits_ends_the_request(
    tokenizer: QuestionTokenizer, inputs: dict[str, npt.NDArray[Any]]
) -> None:
    arrived, gone = threading.Event(), threading.Event()

    def watch(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        arrived.set()
        handler.connection.settimeout(20)
        if not handler.connection.recv(1):  # the client closed
            gone.set()

    async def give_up(asked: VllmClient) -> None:
        task = asyncio.create_task(asked.run_async(inputs))
        await asyncio.to_thread(arrived.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with server(watch) as (url, _), client(url, tokenizer, timeout_s=30.0) as asked:
        asyncio.run(give_up(asked))
        assert gone.wait(10)


def test_closing_ends_what_is_under_way_and_what_comes_after(
    tokenizer: QuestionTokenizer, inputs: dict[str, npt.NDArray[Any]]
) -> None:
    arrived, over = threading.Event(), threading.Event()

    def hang(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        arrived.set()
        over.wait(20)

    with server(hang) as (url, _), client(url, tokenizer, timeout_s=30.0) as asked, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(asked.run, inputs)
        assert arrived.wait(20)
        asked.close()
        with pytest.raises(LlmUnavailableError, match="was closed"):
            waiting.result(10)
        with pytest.raises(LlmUnavailableError, match="was closed"):
            asked.run(inputs)
        over.set()


FORKING = """
import os, sys, warnings
from pathlib import Path
import numpy as np
from mechm_runtime.llm.scorer import graph_inputs
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.llm.vllm.client import VllmClient
from mechm_runtime.llm.vllm.config import ServerConfig
from mechm_runtime.types import Utterance

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on: the process that forks has threads
tokenizer = QuestionTokenizer(Path(os.environ["TOKENIZER"]))
inputs = graph_inputs(tokenizer.pack((Utterance(1, "A", "I got the job!"),), [0]), np.zeros((1, 0, 8), np.float32))
asked = VllmClient(ServerConfig(os.environ["SERVER"], timeout_s=20.0), tokenizer)
asked.run(inputs)
child = os.fork()
if not child:
    asked.run(inputs)
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
asked.run(inputs)
"""


def test_a_forked_process_has_connections_of_its_own(small_weights: Path, fresh_python: Any) -> None:
    with server(well) as (url, seen):
        done = fresh_python(FORKING, TOKENIZER=str(small_weights / "llm" / "tokenizer.json"), SERVER=url)
    assert done.returncode == 0, done.stderr
    assert len(seen) == 3


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://a", "http://", "http://a:x", "http://u:p@a", "http://a/?b"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="is no http"):
        ServerConfig(url)


def test_settings_that_make_no_sense_are_refused_and_the_key_is_not_shown() -> None:
    for settings in ({"timeout_s": 0.0}, {"max_in_flight": 0}, {"n_retries": -1}):
        with pytest.raises(ValueError, match=r"positive|negative"):
            ServerConfig(**settings)  # type: ignore[arg-type]
    assert SECRET not in repr(ServerConfig(api_key=SECRET))
