"""No analysis outlasts its deadline by more than a run: decoding, long voices and words, busy lanes, slow loading."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import threading
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mechm_runtime import Analysis, Conversation, Pipeline, Utterance
from mechm_runtime.analysis.decoding import CUT_REASON
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.media import decoder_process, reader
from mechm_runtime.modalities.text import TextEncoder
from mechm_runtime.modalities.voice import VoiceEncoder
from mechm_runtime.output.table import render_table

SLACK_S = 1.5
"""One run of a graph, on a machine that does other things too."""


@pytest.fixture(params=[1, 2])
def pipeline(request: Any, tiny_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.from_bundle(tiny_bundle, engine=EngineConfig(n_threads=1, n_lanes=request.param)) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def recording(repository: Path) -> Conversation:
    turns = tuple(Utterance(k + 1, "AB"[k % 2], f"This is {k}.", 2.0 * k, 2.0 * k + 2) for k in range(4))
    return Conversation("c", turns, repository / "sample" / "conversation.mp4")


@pytest.fixture(scope="module")
def long_voice(tmp_path_factory: pytest.TempPathFactory) -> Conversation:
    """Twenty minutes as one utterance."""
    path = tmp_path_factory.mktemp("voice") / "long.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(np.random.default_rng(0).normal(0, 2000, 1200 * 16_000).astype("<i2").tobytes())
    return Conversation("voice", (Utterance(1, "A", "A speech.", 0.0, 1200.0),), path)


def in_time(pipeline: Pipeline, conversation: Conversation, deadline_ms: float) -> Analysis:
    """The analysis, which must come in time and say how late it was."""
    began = time.perf_counter()
    analysis = pipeline.analyze(conversation, deadline_ms=deadline_ms)
    took_ms = 1000 * (time.perf_counter() - began)
    assert took_ms < deadline_ms + 1000 * SLACK_S
    assert abs(analysis.late_ms - max(0.0, took_ms - deadline_ms)) < 50
    return analysis


def slow(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, seconds: float) -> None:
    """Make a method take longer."""
    method = getattr(owner, name)

    def slowed(*given: Any, **named: Any) -> Any:
        time.sleep(seconds)
        return method(*given, **named)

    monkeypatch.setattr(owner, name, slowed)


def test_a_long_voice_ends_at_the_deadline_and_says_how_much_was_heard(
    pipeline: Pipeline, long_voice: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.analyze(Conversation("warm", (Utterance(1, "A", "Hello.", 0.0, 2.0),), long_voice.media))
    slow(monkeypatch, VoiceEncoder, "encode_piece", 0.4)
    (voice,) = in_time(pipeline, long_voice, 1500).utterances
    assert "text" in voice.modalities
    assert "left out to meet the deadline of 1500 ms" in voice.missing["audio"]
    if "audio" in voice.modalities:
        assert voice.missing["audio"].startswith("its voice after")


def test_an_utterance_is_read_up_to_a_bound(
    pipeline: Pipeline, long_voice: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds: list[float] = []

    def encode(self: VoiceEncoder, index: int, samples: Any, inputs: Any) -> str:
        seconds.append(len(samples) / 16_000)
        return ""

    monkeypatch.setattr(VoiceEncoder, "encode", encode)
    (voice,) = pipeline.analyze(long_voice).utterances
    clip = Conversation("clip", (Utterance(1, "A", "A speech.", media=long_voice.media),))
    (of_clip,) = pipeline.analyze(clip).utterances
    assert seconds == [300.0, 300.0]
    assert voice.missing["audio"] == of_clip.missing["audio"] == CUT_REASON
    update = pipeline.open_session().append(Utterance(1, "A", "A speech."), samples=np.ones(400 * 16_000, np.float32))
    assert seconds[2:] == [300.0]
    assert update.utterance.missing["audio"] == CUT_REASON


def test_a_decoder_that_hangs_is_ended_and_the_next_request_has_another(
    pipeline: Pipeline, recording: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.analyze(recording)  # everything is loaded
    pipeline._readers.close()
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        process = decoder_process.start_decoder()
        process.send_signal(signal.SIGSTOP)
        started.append(process)
        return process

    clips = Conversation("clips", tuple(Utterance(k, "A", "Yes.", media=recording.media) for k in (1, 2)))
    with monkeypatch.context() as patched:
        patched.setattr(reader, "start_decoder", start)
        for conversation in (recording, clips):
            analysis = in_time(pipeline, conversation, 300)
            for utterance in analysis.utterances:
                assert utterance.modalities == ("text",)
                assert utterance.missing["audio"] == "left out to meet the deadline of 300 ms"
        session = pipeline.open_session()
        began = time.perf_counter()
        update = session.append(Utterance(1, "A", "Yes.", media=recording.media), deadline_ms=300)
        assert time.perf_counter() - began < 0.3 + SLACK_S
        assert update.utterance.missing["audio"] == "left out to meet the deadline of 300 ms"
    assert started
    assert all(process.poll() is not None for process in started), "ended, not abandoned"
    assert all("audio" in utterance.modalities for utterance in pipeline.analyze(recording).utterances)


def test_long_words_end_at_the_deadline_and_unread_utterances_have_no_emotion(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = Conversation("c", tuple(Utterance(k + 1, "A", "I can not believe it. " * 225) for k in range(20)))
    analysis = in_time(pipeline, talk, 300)
    reason = "left out to meet the deadline of 300 ms"
    unread = [utterance for utterance in analysis.utterances if not utterance.modalities]
    assert unread
    assert all(u.missing["text"] == reason and u.emotion is None for u in unread)
    read = {u.id for u in analysis.utterances if u.modalities}
    assert read, "the first words are always read"
    assert all(pair.emotion_utterance in read and pair.cause_utterance in read for pair in analysis.pairs)
    plain = pipeline.analyze(talk)
    assert all(utterance.modalities == ("text",) and not utterance.missing for utterance in plain.utterances)


def test_busy_lanes_are_not_waited_for(pipeline: Pipeline, recording: Conversation) -> None:
    pipeline.analyze(recording)
    if pipeline._lanes.n == 1:
        pytest.skip("one lane: everything runs in the calling thread without a deadline")
    over = threading.Event()
    try:
        for _ in range(6):
            pipeline._lanes.submit(over.wait, 20)
        for utterance in in_time(pipeline, recording, 400).utterances:
            assert utterance.modalities == ("text",)
            assert utterance.missing["audio"] == "left out to meet the deadline of 400 ms"
        session = pipeline.open_session()
        began = time.perf_counter()
        update = session.append(Utterance(1, "A", "Yes."), samples=np.ones(16_000, np.float32), deadline_ms=300)
        assert time.perf_counter() - began < 0.3 + SLACK_S
        assert update.utterance.modalities == ("text",)
        streaming = pipeline.open_session()
        streaming.append_audio(np.ones(80_000, np.float32))
        began = time.perf_counter()
        update = streaming.append(Utterance(1, "A", "Yes."), deadline_ms=300)
        assert time.perf_counter() - began < 0.3 + SLACK_S
        assert update.utterance.missing["audio"] == "left out to meet the deadline of 300 ms"
    finally:
        over.set()


def test_a_queue_of_others_is_not_waited_for(pipeline: Pipeline) -> None:
    pipeline.analyze(Conversation("c", (Utterance(1, "A", "Hello."),)))
    queue, over = pipeline._run_queue, threading.Event()
    with_turns = [threading.Thread(target=hold_turn, args=(queue, over)) for _ in range(queue.n)]
    for thread in with_turns:
        thread.start()
    while queue._n_running < queue.n:
        time.sleep(0.005)
    (utterance,) = in_time(pipeline, Conversation("c", (Utterance(1, "A", "Hello."),)), 200).utterances
    over.set()
    for thread in with_turns:
        thread.join()
    assert utterance.emotion is None
    assert utterance.missing == {"text": "left out to meet the deadline of 200 ms"}


def hold_turn(queue: Any, over: threading.Event) -> None:
    from mechm_runtime.analysis.deadline import CostEstimator, Deadline
    from mechm_runtime.system.time_limit import limited_by

    with limited_by(Deadline(60_000, CostEstimator())), queue.turn():
        over.wait(20)


def test_loading_is_not_waited_for_and_is_there_for_the_next(
    pipeline: Pipeline, recording: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = VoiceEncoder.from_bundle

    def slowly(bundle: Any, load: Any) -> VoiceEncoder:
        time.sleep(3)
        return build(bundle, load)

    monkeypatch.setattr(VoiceEncoder, "from_bundle", slowly)
    began = time.perf_counter()
    for utterance in pipeline.analyze(recording, deadline_ms=1000).utterances:
        assert utterance.missing["audio"] == "left out to meet the deadline of 1000 ms"
    assert time.perf_counter() - began < 2.9
    assert all("audio" in utterance.modalities for utterance in pipeline.analyze(recording).utterances)


def test_cancelled_work_stops(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Conversation("c", tuple(Utterance(k + 1, "A", "I can not believe it. " * 225) for k in range(30)))
    n_runs, begun = [0], threading.Event()
    engine = pipeline._encoders._text._engine  # type: ignore[union-attr]

    class Counting:
        def run(self, inputs: Any) -> Any:
            n_runs[0] += 1
            begun.set()
            time.sleep(0.05)
            return engine.run(inputs)

    monkeypatch.setattr(pipeline._encoders._text, "_engine", Counting())

    async def give_up() -> None:
        task = asyncio.create_task(pipeline.analyze_async(talk))
        await asyncio.to_thread(begun.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    time.sleep(1.5)
    n = n_runs[0]
    time.sleep(1.0)
    assert n_runs[0] == n <= 2


def test_many_threads_are_answered_in_time(tiny_bundle: Path, recording: Conversation) -> None:
    with Pipeline.from_bundle(tiny_bundle, engine=EngineConfig(n_threads=1, n_lanes=2)) as pipeline:
        pipeline.analyze(recording)
        late: list[float] = []

        def call() -> None:
            for _ in range(5):
                began = time.perf_counter()
                pipeline.analyze(recording, deadline_ms=300)
                late.append(time.perf_counter() - began - 0.3)

        threads = [threading.Thread(target=call) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(late) == 60
    assert max(late) < SLACK_S


def test_what_is_late_says_so(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Conversation("c", (Utterance(1, "A", "Hello."),))
    on_time = pipeline.analyze(talk, deadline_ms=60_000)
    assert on_time.late_ms == 0
    assert json.loads(on_time.to_json())["late_ms"] == 0
    assert "deadline" not in render_table(on_time, 160, colour=False)
    slow(monkeypatch, TextEncoder, "encode", 0.2)
    analysis = pipeline.analyze(talk, deadline_ms=100)
    assert 90 < analysis.late_ms < 2000
    assert json.loads(analysis.to_json())["late_ms"] == analysis.late_ms
    assert f"{analysis.late_ms:,.0f} ms after the deadline" in render_table(analysis, 160, colour=False)
    assert analysis == on_time.__class__(**{**vars_of(analysis), "late_ms": 0.0}), "it is no part of the answer"


def vars_of(analysis: Analysis) -> dict[str, Any]:
    return {name: getattr(analysis, name) for name in analysis.__slots__}
