"""Whatever the Llama's server does, an analysis is the fusion's at worst, comes in time, and says what is missing."""

from __future__ import annotations

import asyncio
import json
import runpy
import socket
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from mechm.cli.analyze import analyze
from mechm.cli.evaluate import evaluate
from mechm_export.bundle.report import BundleReport
from mechm_runtime import Analysis, Conversation, Pipeline, ServerConfig, Utterance
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.errors import InputError, LlmUnavailableError

FOLDER = Path(__file__).parents[2] / "mechm_runtime" / "llm" / "vllm"
misbehaving = SimpleNamespace(**runpy.run_path(str(FOLDER / "misbehaving.py")))
TALK = Conversation("c", (Utterance(1, "Ana", "My father hits me."), Utterance(2, "Bo", "No way!")))
ONE_THREAD = EngineConfig(n_threads=1)
SLACK_S = 1.0
"""Runs of the graphs, and a machine that does other things too."""


@pytest.fixture
def server() -> Iterator[Any]:
    with misbehaving.serve() as server:
        yield server


@pytest.fixture
def pipeline(report: BundleReport, server: Any) -> Iterator[Pipeline]:
    with asking(report, server.url) as pipeline:
        yield pipeline


def asking(report: BundleReport, url: str, **settings: Any) -> Pipeline:
    config = ServerConfig(url, **{"timeout_s": 20.0, "backoff_s": 1e-6, "n_retries": 0, **settings})
    return Pipeline(report.bundle, llm="vllm", server=config, asked_below=1.0, engine=ONE_THREAD)


@pytest.fixture(scope="module")
def fusion_alone(report: BundleReport) -> list[dict[str, float]]:
    return probabilities(Pipeline(report.bundle, llm="none", engine=ONE_THREAD).analyze(TALK))


def probabilities(analysis: Analysis) -> list[dict[str, float]]:
    return [dict(utterance.probabilities) for utterance in analysis.utterances]


def reasons(analysis: Analysis) -> set[str]:
    return {utterance.missing.get("llm", "") for utterance in analysis.utterances}


@pytest.mark.parametrize(
    "mode",
    [
        *misbehaving.CHANGES,
        *misbehaving.BODIES,
        *misbehaving.BROKEN,
        *(f"STATUS {n}" for n in (204, 302, 400, 401, 403, 404, 413, 429, 500, 503)),
    ],
)
def test_an_odd_answer_gives_the_fusions(
    mode: str, server: Any, pipeline: Pipeline, fusion_alone: list[dict[str, float]]
) -> None:
    answered = pipeline.analyze(TALK)
    assert reasons(answered) == {""}
    assert probabilities(answered) != fusion_alone
    server.mode = mode
    for analysis in (pipeline.analyze(TALK), asyncio.run(pipeline.analyze_async(TALK))):
        assert probabilities(analysis) == fusion_alone
        (reason,) = reasons(analysis)
        assert reason
        assert "secret" not in reason
        assert "father" not in reason
    server.mode = "ok"
    time.sleep(0.01)
    assert reasons(pipeline.analyze(TALK)) == {""}


def test_a_large_answer_takes_little_memory(server: Any, pipeline: Pipeline) -> None:
    for mode in ("gzip", "body 17 MiB"):
        server.mode = mode
        tracemalloc.start()
        try:
            pipeline.analyze(TALK)
            assert tracemalloc.get_traced_memory()[1] < 100 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("mode", misbehaving.SLOW)
def test_a_slow_server_is_waited_for_until_the_deadline(
    mode: str, server: Any, pipeline: Pipeline, fusion_alone: list[dict[str, float]]
) -> None:
    pipeline.analyze(TALK)
    server.mode = mode
    for call in (
        lambda: pipeline.analyze(TALK, deadline_ms=500),
        lambda: asyncio.run(pipeline.analyze_async(TALK, deadline_ms=500)),
    ):
        began = time.perf_counter()
        analysis = call()
        took_s = time.perf_counter() - began
        assert took_s < 0.5 + SLACK_S
        assert probabilities(analysis) == fusion_alone
        (reason,) = reasons(analysis)
        assert reason.startswith("left out to meet the deadline of 500 ms")
        assert analysis.late_ms <= 1000 * took_s - 500 + 1 or analysis.late_ms == 0


def test_a_session_waits_no_longer_than_its_deadline(server: Any, pipeline: Pipeline) -> None:
    session = pipeline.open_session()
    assert "llm" not in session.append(Utterance(1, "Ana", "I got the job!")).utterance.missing
    server.mode = "hang"

    async def append(number: int) -> Any:
        return await session.append_async(Utterance(number, "Bo", "Really? Congratulations."), deadline_ms=300)

    for number, call in ((2, session.append), (3, None)):
        began = time.perf_counter()
        if call is None:
            update = asyncio.run(append(number))
        else:
            update = call(Utterance(number, "Bo", "Really? Congratulations."), deadline_ms=300)
        assert time.perf_counter() - began < 0.3 + SLACK_S
        assert update.utterance.missing["llm"].startswith("left out to meet the deadline of 300 ms")


def test_a_server_that_hangs_is_not_asked_by_every_request_with_a_deadline(server: Any, pipeline: Pipeline) -> None:
    pipeline.analyze(TALK)
    server.mode = "hang"
    before = server.n_asked
    for _ in range(10):
        pipeline.analyze(TALK, deadline_ms=300)
    assert server.n_asked - before < 5


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def test_a_server_that_is_down_from_the_start_is_asked_when_it_comes(
    report: BundleReport, fusion_alone: list[dict[str, float]]
) -> None:
    with misbehaving.serve() as server:
        server.models = "STATUS 503"  # vLLM while it loads its weights
        with asking(report, server.url) as early:
            server.mode = "STATUS 503"
            analysis = early.analyze(TALK)
            assert probabilities(analysis) == fusion_alone
            server.models = server.mode = "ok"
            time.sleep(0.01)
            assert reasons(early.analyze(TALK)) == {""}
    url = f"http://127.0.0.1:{free_port()}"
    with asking(report, url, backoff_s=60.0) as alone:
        analysis = alone.analyze(TALK)
        assert probabilities(analysis) == fusion_alone
        (reason,) = reasons(analysis)
        assert f"no Llama's server at {url}" in reason
        with pytest.raises(LlmUnavailableError, match="no Llama's server at"):
            alone.check_llm()


def test_a_server_that_passes_the_check_is_asked_at_once(report: BundleReport) -> None:
    with misbehaving.serve() as server:
        server.models = "STATUS 503"
        with asking(report, server.url, backoff_s=60.0) as pipeline:
            assert reasons(pipeline.analyze(TALK)) != {""}
            server.models = "ok"
            pipeline.check_llm()
            assert reasons(pipeline.analyze(TALK)) == {""}


def test_the_command_answers_without_its_server_and_the_score_refuses(report: BundleReport, tmp_path: Path) -> None:
    talk = tmp_path / "talk.json"
    said = [{"utterance_ID": u.id, "speaker": u.speaker, "text": u.text, "emotion": "neutral"} for u in TALK.utterances]
    talk.write_text(json.dumps([{"conversation_ID": 1, "conversation": said, "emotion-cause_pairs": []}]))
    url = f"http://127.0.0.1:{free_port()}"
    options = ["--bundle", str(report.bundle.folder), "--llm", "vllm", "--llm-url", url, "--llm-below", "1"]
    answered = CliRunner().invoke(analyze, [str(talk), *options])
    assert answered.exit_code == 0, answered.output
    assert "llm missing in every utterance" in answered.output
    assert url in answered.output
    refused = CliRunner().invoke(evaluate, [str(talk), *options])
    assert isinstance(refused.exception, LlmUnavailableError)


@pytest.mark.parametrize(
    ("models", "error", "message"),
    [
        ("STATUS 401", InputError, "refuses the API key"),
        ("STATUS 404", InputError, "does not know the model"),
        ("body html", LlmUnavailableError, "is no vLLM server"),
        ("body list", LlmUnavailableError, "is no vLLM server"),
    ],
)
def test_what_is_wrong_from_the_start_is_an_error(
    models: str, error: type[Exception], message: str, server: Any, report: BundleReport
) -> None:
    server.models = models
    with pytest.raises(error, match=message) as raised:
        asking(report, server.url)
    assert raised.value.hint  # type: ignore[attr-defined]
