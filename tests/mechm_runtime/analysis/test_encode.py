"""Encoders side by side give what they give in turns, fail as they would, and leave neither threads nor processes."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mechm_runtime import Analysis, Conversation, Pipeline, Utterance
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.errors import InputError, MediaError
from mechm_runtime.media import MediaReader
from mechm_runtime.media.reader_pool import ReaderPool
from mechm_runtime.modalities.scene import SceneEncoder


@pytest.fixture(scope="module")
def sample(repository: Path) -> Path:
    return repository / "sample" / "conversation.mp4"


@pytest.fixture(scope="module")
def recording(sample: Path) -> Conversation:
    utterances = tuple(
        Utterance(k + 1, "AB"[k % 2], None if k == 2 else f"This is number {k}.", 2.5 * k, 2.5 * k + 2)
        for k in range(8)
    )
    return Conversation("recording", utterances, sample)


@pytest.fixture
def pipeline(tiny_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.from_bundle(tiny_bundle, engine=EngineConfig(n_threads=1, n_lanes=3)) as pipeline:
        yield pipeline


def mixed(sample: Path, broken: Path) -> Conversation:
    """Clips, one of them broken, one missing, and words alone."""
    broken.write_bytes(sample.read_bytes()[:2000])
    media = (sample, broken, None, broken.with_name("gone.mp4"), sample)
    return Conversation("mixed", tuple(Utterance(k + 1, "A", f"Line {k}.", media=m) for k, m in enumerate(media)))


def answer(analysis: Analysis) -> str:
    return replace(analysis, timings_ms={}).to_json()


def test_side_by_side_is_in_turns_to_the_bit(
    tiny_bundle: Path, pipeline: Pipeline, recording: Conversation, sample: Path, tmp_path: Path
) -> None:
    in_turns = Pipeline.from_bundle(tiny_bundle, engine=EngineConfig(n_threads=1, n_lanes=1))
    for conversation in (recording, mixed(sample, tmp_path / "broken.mp4"), replace(recording, media=None)):
        answers, steps = [], []
        for each in (in_turns, pipeline):
            seen: dict[tuple[str, int, int], None] = {}
            answers.append(answer(each.analyze(conversation, progress=lambda *step, seen=seen: seen.setdefault(step))))
            steps.append(list(seen))
        assert answers[0] == answers[1]
        assert steps[0] == steps[1]
    assert pipeline.analyze(recording).timings_ms.keys() == in_turns.analyze(recording).timings_ms.keys()


def test_encoders_run_while_others_do(pipeline: Pipeline, recording: Conversation, monkeypatch: Any) -> None:
    at_once: list[int] = []
    running, lock, read = [0], threading.Lock(), SceneEncoder.encode

    def watched(self: SceneEncoder, *given: Any) -> None:
        with lock:
            running[0] += 1
            at_once.append(running[0])
        time.sleep(0.02)
        read(self, *given)
        with lock:
            running[0] -= 1

    monkeypatch.setattr(SceneEncoder, "encode", watched)
    analysis = pipeline.analyze(recording)
    assert 2 <= max(at_once) <= 3
    assert analysis.timings_ms["total"] >= max(analysis.timings_ms.values()), "what ran twice at once counts once"


@pytest.mark.parametrize("error", [MemoryError("no room"), KeyboardInterrupt()])
def test_an_error_in_a_lane_is_the_callers_and_nothing_runs_on(
    error: BaseException, pipeline: Pipeline, recording: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answer(pipeline.analyze(recording))
    read, calls = SceneEncoder.encode, []

    def failing(self: SceneEncoder, index: int, *given: Any) -> None:
        calls.append(index)
        if index == 3:
            raise error
        read(self, index, *given)

    with monkeypatch.context() as patched:
        patched.setattr(SceneEncoder, "encode", failing)
        with pytest.raises(type(error)) as raised:
            pipeline.analyze(recording)
        assert raised.value is error
        n_calls = len(calls)
        time.sleep(0.1)
        assert len(calls) == n_calls, "nothing begins after the caller has left"
    assert answer(pipeline.analyze(recording)) == expected


def test_an_interrupt_in_the_calling_thread_ends_it(pipeline: Pipeline, recording: Conversation) -> None:
    expected = answer(pipeline.analyze(recording))

    def interrupt(stage: str, done: int, _total: int) -> None:
        if stage == "media" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.analyze(recording, progress=interrupt)
    assert answer(pipeline.analyze(recording)) == expected


def test_an_unreadable_recording_is_refused_as_before(
    pipeline: Pipeline, recording: Conversation, tmp_path: Path
) -> None:
    (tmp_path / "call.wav").write_bytes(b"RIFF")
    with pytest.raises(MediaError, match=r"call\.wav"):
        pipeline.analyze(replace(recording, media=tmp_path / "call.wav"))
    late = tuple(replace(u, start_s=900.0, end_s=901.0) for u in recording.utterances)
    with pytest.raises(InputError, match="the recording at"):
        pipeline.analyze(replace(recording, utterances=late))


def lanes_alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("mechm")]


def test_threads_and_processes_end_with_the_pipeline(tiny_bundle: Path, recording: Conversation) -> None:
    before = set(lanes_alive())  # an earlier test's pipeline may be collected, and its lanes end, while this one runs

    def started() -> set[threading.Thread]:
        return set(lanes_alive()) - before

    processes = []
    for forget in (False, True):
        pipeline = Pipeline.from_bundle(tiny_bundle, engine=EngineConfig(n_threads=1, n_lanes=2))
        pipeline.analyze(recording)
        assert started()
        (reader,) = pipeline._readers._idle
        assert reader._process is not None
        processes.append(reader._process)
        assert processes[-1].poll() is None
        del reader
        if forget:
            del pipeline
        else:
            pipeline.close()
            assert answer(pipeline.analyze(recording)), "it serves again after it was closed"
            pipeline.close()
        until = time.monotonic() + 30
        while (started() or processes[-1].poll() is None) and time.monotonic() < until:
            gc.collect()  # again, since a lane may hold its last task for a moment after the answer is there
            time.sleep(0.01)
        assert started() == set()
        assert processes[-1].poll() is not None


def test_a_decoding_process_serves_one_conversation_after_the_other(sample: Path) -> None:
    pool = ReaderPool(None, 1)
    with pool.reader() as first:
        info = first.probe(sample)
        process = first._process
    with pool.reader() as again, pool.reader() as beside:
        assert again is first
        assert again._process is process
        assert beside is not first
        assert beside.probe(sample) == again.probe(sample) == info
    assert len(pool._idle) == 1
    with pytest.raises(ValueError, match="something else"), pool.reader():
        raise ValueError("something else")
    assert not pool._idle
    with pool.reader() as new:
        assert new.probe(sample) == info
    pool.close()
    assert not pool._idle


def test_a_process_that_was_killed_while_idle_is_replaced(sample: Path) -> None:
    pool = ReaderPool(None, 1)
    with pool.reader() as reader:
        info = reader.probe(sample)
        process = reader._process
    assert process is not None
    process.kill()
    process.wait()
    with pool.reader() as reader:
        assert reader.probe(sample) == info
    pool.close()
    assert isinstance(reader, MediaReader)
