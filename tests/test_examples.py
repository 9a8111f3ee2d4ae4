"""The programs in `examples/` run as they are, and embed one pipeline in ways that answer alike."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mechm_runtime import Conversation, EngineConfig, Pipeline, Utterance

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
allows_fork = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # that is what is tested


def run(example: Path, bundle: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(example), str(bundle)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def expected(bundle: Path) -> str:
    """The output of the examples, from a pipeline in this process."""
    pipeline = Pipeline.from_bundle(bundle, engine=EngineConfig(n_threads=1))
    lines = []
    for n in range(8):
        turns = (Utterance(1, "Ana", f"I got {n} offers!"), Utterance(2, "Ben", "Congratulations!"))
        answers = pipeline.analyze(Conversation("c", turns)).utterances
        lines.append(f"talk {n} {[answer.emotion for answer in answers]}\n")
    return "".join(lines)


@pytest.mark.parametrize("name", ["threads", "event_loop", pytest.param("forked", marks=needs_fork), "spawned"])
def test_an_example_answers_as_one_pipeline_does(name: str, repository: Path, tiny_bundle: Path) -> None:
    assert run(repository / "examples" / f"{name}.py", tiny_bundle) == expected(tiny_bundle)


def recorded(repository: Path) -> Conversation:
    utterances = tuple(Utterance(k + 1, "AB"[k % 2], f"Line {k}.", 2.0 * k, 2.0 * k + 1.5) for k in range(3))
    return Conversation("recorded", utterances, repository / "sample" / "conversation.mp4")


def answer(pipeline: Pipeline, conversation: Conversation) -> str:
    return replace(pipeline.analyze(conversation), timings_ms={}).to_json()


def in_a_child(pipeline: Pipeline, conversation: Conversation, answers: Any) -> None:
    with pipeline:
        answers.put([answer(pipeline, conversation) for _ in range(2)])


@needs_fork
@allows_fork
@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_pipeline_that_has_worked_works_in_a_forked_process(
    n_threads: int, repository: Path, tiny_bundle: Path
) -> None:
    """Its lanes, its decoding processes and its graphs' threads are the parent's; the parent goes on with them."""
    conversation, fork = recorded(repository), multiprocessing.get_context("fork")
    with Pipeline.from_bundle(tiny_bundle, engine=EngineConfig(n_threads=n_threads, n_lanes=2)) as pipeline:
        before = answer(pipeline, conversation)
        answers: Any = fork.Queue()
        children = [fork.Process(target=in_a_child, args=(pipeline, conversation, answers)) for _ in range(2)]
        for child in children:
            child.start()
        assert [answers.get(timeout=100) for _ in children] == [[before, before]] * 2
        for child in children:
            child.join(30)
            assert child.exitcode == 0
        assert answer(pipeline, conversation) == before


@needs_fork
@allows_fork
def test_it_may_be_forked_while_threads_work(repository: Path, tiny_bundle: Path) -> None:
    conversation, fork = recorded(repository), multiprocessing.get_context("fork")
    with (
        Pipeline.from_bundle(tiny_bundle, engine=EngineConfig(n_threads=1, n_lanes=2)) as pipeline,
        ThreadPoolExecutor(3) as pool,
    ):
        before = answer(pipeline, conversation)
        answers: Any = fork.Queue()
        working = [pool.submit(answer, pipeline, conversation) for _ in range(6)]
        children = [fork.Process(target=in_a_child, args=(pipeline, conversation, answers)) for _ in range(2)]
        for child in children:
            child.start()
        assert [answers.get(timeout=100) for _ in children] == [[before, before]] * 2
        assert [future.result(100) for future in working] == [before] * 6
        for child in children:
            child.join(30)
            assert child.exitcode == 0


@pytest.fixture
def service(repository: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's app, and a client that has started it."""
    pytest.importorskip("fastapi", reason="fastapi is not installed: pip install 'mechm[service]'")
    from starlette.testclient import TestClient

    monkeypatch.setenv("MECHM_BUNDLE", str(tiny_bundle))
    path = repository / "examples" / "service.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
    spec = importlib.util.spec_from_file_location("service", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "service", module)  # where annotations are looked up
    spec.loader.exec_module(module)
    with TestClient(module.app) as client:
        yield client


def test_the_service_answers_as_the_pipeline_does(service: Any, tiny_bundle: Path) -> None:
    turns = [{"speaker": "Ana", "text": "I got the job!"}, {"speaker": "Ben", "text": "Congratulations!"}]
    answered = service.post("/analyze", json={"utterances": turns})
    assert answered.status_code == 200
    found = answered.json()
    conversation = Conversation("c", tuple(Utterance(n, **turn) for n, turn in enumerate(turns, start=1)))
    expected = Pipeline.from_bundle(tiny_bundle).analyze(conversation)
    assert [u["emotion"] for u in found["utterances"]] == [u.emotion for u in expected.utterances]
    assert found["bundle_id"] == expected.bundle_id
    assert service.post("/analyze", json={"utterances": turns, "deadline_ms": 5000}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"utterances": []},
        {"utterances": [{"speaker": "A"}]},
        {"utterances": [{"text": ""}]},
        {"utterances": [{"text": "x" * 6000}]},
        {"utterances": [{"text": "Hello."}], "deadline_ms": -1},
    ],
)
def test_the_service_refuses_what_it_cannot_use(body: dict[str, Any], service: Any) -> None:
    assert service.post("/analyze", json=body).status_code == 422


def test_the_service_holds_sessions(service: Any) -> None:
    with service.websocket_connect("/session") as socket:
        for number, text in enumerate(("I lost my keys.", "Oh no!", "Found them!"), start=1):
            socket.send_json({"speaker": "Ana", "text": text})
            update = socket.receive_json()
            assert update["utterance"]["id"] == number
            assert update["utterance"]["text"] == text
