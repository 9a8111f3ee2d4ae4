"""Conversations that go on: what sessions find is what whole conversations give, in bounded time and memory."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mechm_runtime import EMOTIONS, Conversation, Pipeline, Utterance
from mechm_runtime.bundle.manifest import PartFiles
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.errors import InputError
from mechm_runtime.media.segments import SAMPLE_RATE
from mechm_runtime.modalities.voice import merge_pieces
from mechm_runtime.session.config import SessionConfig
from mechm_runtime.session.session import Session
from mechm_runtime.session.update import SessionUpdate
from mechm_runtime.types import Analysis, Pair

ONE_THREAD = EngineConfig(n_threads=1)
LINES = (
    "We won the cup!",
    "Really? That's wonderful.",
    "No. It was a joke.",
    "How mean of you.",
    "I am sorry, I did not want to hurt you.",
    "You always say that.",
)


class Watched:
    """Runs a part's graph and keeps the shapes that it was given."""

    def __init__(self, pipeline_bundle: Path, part: PartFiles) -> None:
        self.shapes: list[dict[str, tuple[int, ...]]] = []
        self._engine = OnnxRuntimeEngine(pipeline_bundle / part.files["fp32"], ONE_THREAD)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        self.shapes.append({name: np.shape(value) for name, value in inputs.items()})
        return self._engine.run(inputs)


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Pipeline:
    """The tiny bundle with constants by which random weights find several emotions and pairs."""
    bundle = open_bundle(tiny_bundle)
    plain = Pipeline(bundle, engine=ONE_THREAD).analyze(talk()).utterances
    usual = np.mean([np.log([u.probabilities[e] for e in EMOTIONS]) for u in plain], 0)
    sharp = replace(bundle.decision, emotion_bias=tuple(-usual * 20), emotion_temperature=0.05, pair_threshold=0.1)
    # In fp32, since int8 rounds what runs together together: one frame alone differs from one among three.
    precisions = dict.fromkeys(bundle.parts, "fp32")
    return Pipeline(replace(bundle, decision=sharp), engine=ONE_THREAD, precisions=precisions)


def talk(n: int = len(LINES)) -> Conversation:
    return Conversation(
        "c", tuple(Utterance(k + 1, "AB"[k % 2], LINES[k % len(LINES)], k * 1.0, k + 1.0) for k in range(n))
    )


def voice(seconds: float, seed: int = 0) -> np.ndarray:
    t = np.arange(round(SAMPLE_RATE * seconds)) / SAMPLE_RATE
    noise = np.random.default_rng(seed).normal(0, 0.05, len(t))
    return (0.3 * np.sin(2 * np.pi * (150 + 20 * seed) * t) + noise).astype(np.float32)


def pictures(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (n, 60, 80, 3), np.uint8)


def without_times(found: Analysis | SessionUpdate) -> dict[str, Any]:
    return {**json.loads(found.to_json()), "timings_ms": None}


def said(updates: list[SessionUpdate]) -> tuple[dict[int, Any], dict[int, tuple[Pair, ...]]]:
    """The state of a client that has only received the updates."""
    utterances, pairs = {}, {}
    for update in updates:
        utterances[update.utterance.id], pairs[update.utterance.id] = update.utterance.emotion, update.pairs
        for revision in update.revisions:
            known = (utterances[revision.utterance.id], tuple(p.cause_utterance for p in pairs[revision.utterance.id]))
            assert known == (revision.previous_emotion, revision.previous_causes)
            utterances[revision.utterance.id], pairs[revision.utterance.id] = (
                revision.utterance.emotion,
                revision.pairs,
            )
    return utterances, pairs


def assert_alike(found: Analysis, expected: Analysis) -> None:
    assert [u.emotion for u in found.utterances] == [u.emotion for u in expected.utterances]
    for one, other in zip(found.utterances, expected.utterances, strict=True):
        assert one.modalities == other.modalities
        assert one.missing == other.missing
        assert list(one.probabilities.values()) == pytest.approx(list(other.probabilities.values()), abs=1e-4)
    ends = [[(p.emotion_utterance, p.cause_utterance) for p in one.pairs] for one in (found, expected)]
    assert ends[0] == ends[1]


def test_a_session_ends_where_the_whole_conversation_does(pipeline: Pipeline) -> None:
    session = pipeline.open_session("c")
    updates = [session.append(u) for u in talk().utterances]
    assert_alike(session.analysis(), pipeline.analyze(talk()))
    assert [u.utterance.id for u in updates] == [1, 2, 3, 4, 5, 6]
    assert all(u.bundle_id == pipeline.bundle_id and u.timings_ms["total"] > 0 for u in updates)


def test_updates_alone_tell_everything(pipeline: Pipeline) -> None:
    session = pipeline.open_session()
    updates = [session.append(u) for u in talk().utterances]
    assert any(update.revisions for update in updates)
    emotions, pairs = said(updates)
    end = session.analysis()
    assert emotions == {u.id: u.emotion for u in end.utterances}
    causes = {number: [p.cause_utterance for p in found] for number, found in pairs.items()}
    assert causes == {u.id: [p.cause_utterance for p in end.causes_of(u.id)] for u in end.utterances}


def test_each_utterance_is_answered_as_the_conversation_so_far(pipeline: Pipeline) -> None:
    session = pipeline.open_session("c")
    for n, utterance in enumerate(talk().utterances, 1):
        update = session.append(utterance)
        whole = pipeline.analyze(talk(n)).utterances[-1]
        assert update.utterance.emotion == whole.emotion
        assert update.utterance.probabilities == pytest.approx(whole.probabilities, abs=1e-4)


def test_voice_and_frames_count_however_they_come(pipeline: Pipeline) -> None:
    given, streamed = pipeline.open_session(), pipeline.open_session()
    for utterance in talk(3).utterances:
        utterance = replace(utterance, start_s=None, end_s=None)
        samples, frames = voice(3.0, utterance.id), pictures(3, utterance.id)
        first = given.append(utterance, samples=samples, frames=frames)
        for chunk in np.array_split(samples, 7):
            streamed.append_audio(chunk)
        for k, frame in enumerate(frames):
            streamed.append_frame(frame, k + 0.5)
        second = streamed.append(utterance)
        assert set(first.utterance.modalities) >= {"text", "audio", "scene"}
        assert first.utterance.emotion == second.utterance.emotion
        assert first.utterance.probabilities == pytest.approx(second.utterance.probabilities, abs=1e-5)
        assert first.utterance.modalities == second.utterance.modalities


def test_a_long_voice_is_read_in_pieces_while_it_speaks(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    watched: dict[str, Watched] = {}

    def load(part: PartFiles) -> Watched:
        return watched.setdefault(part.name, Watched(bundle.folder, part))

    pipeline = Pipeline(bundle, load_part=load)
    session = pipeline.open_session(config=SessionConfig(piece_s=1.0))
    samples = voice(3.7)
    for chunk in np.array_split(samples, 10):
        session.append_audio(chunk)
    pipeline.close()  # waits for what is being read
    before = len(watched["audio"].shapes)
    session.append(Utterance(1, "A", "Yes."))
    assert before == 2
    assert len(watched["audio"].shapes) == 3
    reader = pipeline._encoders.voice
    pieces = [reader.encode_piece(piece) for piece in (samples[:16000], samples[16000:32000], samples[32000:])]
    np.testing.assert_allclose(session._history.inputs.audio[0], merge_pieces(pieces), atol=1e-5)


def test_of_many_frames_those_are_read_that_an_utterance_would_give(tiny_bundle: Path) -> None:
    precisions = {"scene": "fp32"}
    pipeline = Pipeline(
        open_bundle(tiny_bundle), engine=ONE_THREAD, modalities=("text", "scene"), precisions=precisions
    )
    session = pipeline.open_session(config=SessionConfig(frame_s=0.5))
    frames = pictures(60)
    for k, frame in enumerate(frames):
        session.append_frame(frame, k * 0.1)  # of which every fifth is read: 0, 0.5, 1.0 ...
    session.append(Utterance(1, "A", "Yes.", 10.0, 16.0))
    expected = pipeline._encoders.of_frames("scene").tokens(frames[[10, 30, 50]])
    np.testing.assert_allclose(session._history.inputs.scene[0], expected, atol=1e-5)


def test_time_and_memory_are_bounded(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    watched: dict[str, Watched] = {}

    def load(part: PartFiles) -> Watched:
        return watched.setdefault(part.name, Watched(bundle.folder, part))

    config = SessionConfig(turns=8, text_tokens=40, llm_turns=4)
    session = Pipeline(bundle, load_part=load).open_session(config=config)
    sizes = []
    for utterance in talk(40).utterances:
        session.append(utterance, samples=voice(0.5))
        sizes.append(session.n_bytes)
    assert len(session.utterances) == 8
    assert [u.id for u in session.utterances] == list(range(33, 41))
    assert len(set(sizes[8:])) == 1
    assert max(shapes["input_ids"][1] for shapes in watched["text"].shapes) <= 41
    assert max(shapes["text"][1] for shapes in watched["fusion"].shapes) == 8
    assert len(watched["audio"].shapes) == 40  # once an utterance
    assert len(session.snapshot()) < 60_000 + 8 * sum(a.nbytes for a in _row(session))


def _row(session: Session) -> list[np.ndarray]:
    return [getattr(session._history.inputs, name)[:1] for name in session._history.inputs.__slots__]


def test_a_restored_session_goes_on_as_if_nothing_had_happened(pipeline: Pipeline) -> None:
    lived, moved = pipeline.open_session("c"), pipeline.open_session("c")
    for utterance in talk(12).utterances:
        samples = voice(0.6, utterance.id) if utterance.id % 3 == 0 else None
        moved = pipeline.restore_session(moved.snapshot())
        assert without_times(lived.append(utterance, samples=samples)) == without_times(
            moved.append(utterance, samples=samples)
        )
    assert lived.snapshot() == moved.snapshot()


def test_a_changed_snapshot_is_refused(pipeline: Pipeline) -> None:
    session = pipeline.open_session()
    session.append(talk().utterances[0])
    data = session.snapshot()
    for at in (0, 31, 32, 40, len(data) // 2, len(data) - 1):
        with pytest.raises(InputError, match="damaged"):
            pipeline.restore_session(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    for cut in (b"", data[:20], data[:-1]):
        with pytest.raises(InputError, match="damaged"):
            pipeline.restore_session(cut)


def _resealed(data: bytes, change: Any) -> bytes:
    """A snapshot with another header, its digest made anew: what somebody malicious would write."""
    import hashlib
    import struct

    body = data[32:]
    (length,) = struct.unpack(">I", body[:4])
    header = json.loads(body[4 : 4 + length])
    change(header)
    encoded = json.dumps(header).encode()
    body = struct.pack(">I", len(encoded)) + encoded + body[4 + length :]
    return hashlib.sha256(body).digest() + body


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(bundle_id="another"), "of bundle another"),
        (lambda h: h.update(format=2), "another version"),
        (lambda h: h["arrays"][0].update(shape=[10**9, 10**9]), "axis"),
        (lambda h: h["arrays"][0].update(dtype="object"), "not float32"),
        (lambda h: h["arrays"].pop(), "not one"),
        (lambda h: h.update(told=[]), "differ in length"),
        (lambda h: h.update(told=[["rage", []]]), "unknown emotion"),
        (lambda h: h.update(n_tokens=["many"]), "count"),
        (lambda h: h.update(llm_first=7), "begins behind"),
        (lambda h: h.update(config={"turns": 0}), "not positive"),
        (lambda h: h["utterances"][0].__setitem__(2, {"a": 1}), "whose words"),
        (lambda h: h.pop("missing"), "not one"),
    ],
)
def test_a_forged_snapshot_is_refused(pipeline: Pipeline, change: Any, message: str) -> None:
    session = pipeline.open_session()
    session.append(talk().utterances[0])
    with pytest.raises(InputError, match=message):
        pipeline.restore_session(_resealed(session.snapshot(), change))


def test_nothing_said_yet_is_a_snapshot_too(pipeline: Pipeline) -> None:
    session = pipeline.restore_session(pipeline.open_session("late").snapshot())
    with pytest.raises(InputError, match="nothing was said"):
        session.analysis()
    assert session.append(talk().utterances[0]).utterance.id == 1


@pytest.mark.parametrize(
    ("utterance", "given", "message"),
    [
        (Utterance(1, "A", "Again."), {}, "comes after 2"),
        (Utterance(3, "A", None), {}, "nothing to analyse"),
        (Utterance(3, "A", None), {"samples": np.zeros(16000, np.float32)}, "digital silence"),
        (Utterance(3, "A", "Yes."), {"samples": np.zeros((2, 800), np.float32)}, "samples of shape"),
        (Utterance(3, "A", "Yes."), {"samples": np.zeros(800, np.int16)}, "samples of shape"),
        (Utterance(3, "A", "Yes."), {"samples": np.full(800, np.nan, np.float32)}, "not finite"),
        (Utterance(3, "A", "Yes."), {"frames": np.zeros((2, 8, 8), np.uint8)}, "frames of shape"),
        (Utterance(3, "A", "Yes."), {"frames": np.zeros((1, 8, 8, 3), np.float32)}, "frames of shape"),
        (Utterance(3, "A", "Yes.", media=Path("clip.mp4")), {"samples": np.ones(800, np.float32)}, "two sources"),
    ],
)
def test_what_cannot_be_used_leaves_the_session_as_it_was(
    pipeline: Pipeline, utterance: Utterance, given: dict[str, Any], message: str
) -> None:
    session = pipeline.open_session()
    for known in talk(2).utterances:
        session.append(known)
    before = session.snapshot()
    with pytest.raises(InputError, match=message):
        session.append(utterance, **given)
    assert session.snapshot() == before
    assert session.append(Utterance(3, "A", "Yes.")).utterance.id == 3


def test_what_is_streamed_in_waits_for_its_utterance(pipeline: Pipeline) -> None:
    session = pipeline.open_session()
    session.append_audio(voice(1.0))
    with pytest.raises(InputError, match="being spoken"):
        session.snapshot()
    with pytest.raises(InputError, match="two sources"):
        session.append(Utterance(1, "A", "Yes."), samples=voice(1.0))
    with pytest.raises(InputError, match="samples of shape"):
        session.append_audio(np.zeros(10, np.float64))
    with pytest.raises(InputError, match="frames of shape"):
        session.append_frame(np.zeros((8, 8), np.uint8))
    assert "audio" in session.append(Utterance(1, "A", "Yes.")).utterance.modalities
    session.append_audio(voice(1.0))
    session.discard()
    assert "audio" not in session.append(Utterance(2, "B", "No.")).utterance.modalities


def test_a_session_is_for_one_caller_at_a_time(pipeline: Pipeline) -> None:
    session = pipeline.open_session()
    begun, go_on = threading.Event(), threading.Event()
    run = pipeline._fusion.run

    def slow(inputs: Any) -> Any:
        begun.set()
        go_on.wait(10)
        return run(inputs)

    parts = replace(session._parts, fusion=type("Slow", (), {"run": staticmethod(slow)})())
    session = Session(parts, "slow", SessionConfig())
    thread = threading.Thread(target=session.append, args=(Utterance(1, "A", "Yes."),))
    thread.start()
    assert begun.wait(10)
    with pytest.raises(InputError, match="under way"):
        session.append(Utterance(2, "B", "No."))
    go_on.set()
    thread.join()
    assert session.append(Utterance(2, "B", "No.")).utterance.id == 2


def test_many_sessions_share_a_pipeline(pipeline: Pipeline) -> None:
    expected = [without_times(update) for update in map(pipeline.open_session().append, talk().utterances)]
    found: list[list[dict[str, Any]]] = [[] for _ in range(4)]

    def listen(out: list[dict[str, Any]]) -> None:
        session = pipeline.open_session()
        out.extend(without_times(session.append(utterance)) for utterance in talk().utterances)

    threads = [threading.Thread(target=listen, args=(out,)) for out in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(one == expected for one in found)


def test_an_event_loop_is_answered_alike_and_cancelling_changes_nothing(pipeline: Pipeline) -> None:
    async def listen() -> list[dict[str, Any]]:
        session = pipeline.open_session()
        updates = []
        for utterance in talk().utterances:
            task = asyncio.create_task(session.append_async(utterance))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            updates.append(without_times(await session.append_async(utterance)))
        return updates

    expected = [without_times(update) for update in map(pipeline.open_session().append, talk().utterances)]
    assert asyncio.run(listen()) == expected


def test_a_deadline_leaves_out_what_does_not_fit_and_says_so(tiny_bundle: Path) -> None:
    pipeline = Pipeline(open_bundle(tiny_bundle), engine=ONE_THREAD)
    session = pipeline.open_session()
    for utterance in talk(4).utterances:
        free = session.append(utterance, samples=voice(0.5), frames=pictures(3), deadline_ms=60_000)
    assert "scene" in free.utterance.modalities
    hasty = session.append(talk(5).utterances[4], samples=voice(0.5), frames=pictures(3), deadline_ms=0.001)
    assert hasty.utterance.modalities == ("text",)
    reason = "left out to meet the deadline of 0.001 ms"
    assert hasty.utterance.missing == {"audio": reason, "face": reason, "scene": reason}
    assert free.late_ms == 0 < hasty.late_ms
    session.append_frame(pictures(1)[0], 0.0)
    time.sleep(1.0)  # it is read meanwhile
    streamed = session.append(talk(6).utterances[5], deadline_ms=0.001)
    assert "scene" in streamed.utterance.modalities
    with pytest.raises(InputError, match="deadline of -1"):
        session.append(talk(7).utterances[6], deadline_ms=-1)


def _go_on(session: Session, connection: Any) -> None:
    connection.send(without_times(session.append(talk(3).utterances[2])))
    connection.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_goes_on_with_its_copy(pipeline: Pipeline) -> None:
    session = pipeline.open_session()
    for utterance in talk(2).utterances:
        session.append(utterance, samples=voice(0.5))
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_go_on, args=(session, sender))
    child.start()
    assert receiver.poll(60)
    assert receiver.recv() == without_times(session.append(talk(3).utterances[2]))
    child.join()
