"""The Llama in a session: it reads each utterance once, starts anew in time, and answers as if it read all again."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from mechm_export.bundle.report import BundleReport
from mechm_runtime import EMOTIONS, Pipeline, Utterance
from mechm_runtime.bundle.manifest import LLAMA, PartFiles
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.session.config import SessionConfig
from mechm_runtime.session.session import Session

ONE_THREAD = EngineConfig(n_threads=1)
LINES = ("We won the cup!", "Really? That's wonderful.", "No. It was a joke.", "How mean of you.", "I am sorry.")


class Counted:
    """Runs a part's graph and counts the tokens that it is given anew."""

    def __init__(self, report: BundleReport, part: PartFiles) -> None:
        self.n_tokens: list[int] = []
        self._engine = OnnxRuntimeEngine(report.bundle.path(part.files["fp32"]), ONE_THREAD)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if "input_ids" in inputs:
            self.n_tokens.append(inputs["input_ids"].shape[1])
        return self._engine.run(inputs)


@pytest.fixture
def counted(report: BundleReport) -> dict[str, Counted]:
    return {}


@pytest.fixture
def pipeline(report: BundleReport, counted: dict[str, Counted]) -> Pipeline:
    def load(part: PartFiles) -> Counted:
        return counted.setdefault(part.name, Counted(report, part))

    return Pipeline(report.bundle, load_part=load)


def talk(n: int) -> list[Utterance]:
    return [Utterance(k + 1, "AB"[k % 2], LINES[k % len(LINES)]) for k in range(n)]


def settled(session: Session) -> Session:
    """Once nothing is being read ahead."""
    session._parts.lanes.close()
    return session


def test_what_it_remembers_answers_as_if_it_were_read_again(pipeline: Pipeline, counted: dict[str, Counted]) -> None:
    config = SessionConfig(llm_tokens=200, llm_turns=4)
    lived, moved = pipeline.open_session(config=config), pipeline.open_session(config=config)
    read, reread = [], []
    began = set()
    for utterance in talk(16):
        tokens = counted[LLAMA].n_tokens
        tokens.clear()
        update = settled(lived).append(utterance)
        read.append(tokens[0])
        settled(lived)
        tokens.clear()
        moved = pipeline.restore_session(moved.snapshot())  # without any memory of the Llama's
        again = settled(moved).append(utterance)
        reread.append(tokens[0])
        settled(moved)
        assert again.utterance.probabilities == pytest.approx(update.utterance.probabilities, abs=2e-3)
        assert lived._history.llm_first == moved._history.llm_first
        began.add(lived._history.llm_first)
    assert len(began) > 1  # it started anew
    assert max(reread) <= config.llm_tokens
    # An utterance and two questions, whatever was said before; where it starts anew that was read ahead.
    assert max(read[2:]) < 2 * min(read[2:])
    assert sum(read) < sum(reread) / 2


def test_without_time_to_read_ahead_it_answers_alike(pipeline: Pipeline) -> None:
    config = SessionConfig(llm_tokens=200, llm_turns=4)
    ahead, late = pipeline.open_session(config=config), pipeline.open_session(config=config)
    assert late._window is not None
    late._window.read_ahead = lambda history: None  # type: ignore[method-assign]
    for utterance in talk(16):
        first, second = settled(ahead).append(utterance), late.append(utterance)
        assert first.utterance.probabilities == pytest.approx(second.utterance.probabilities, abs=2e-3)


def test_long_utterances_do_not_fill_it_beyond_its_bound(pipeline: Pipeline, counted: dict[str, Counted]) -> None:
    session = pipeline.open_session(config=SessionConfig(llm_tokens=300, llm_turns=6, revised_turns=0))
    for number in range(1, 8):
        words = " ".join(f"word{k}" for k in range(5 * number))
        session.append(Utterance(number, "A", words))
        settled(session)
    assert 200 < max(counted[LLAMA].n_tokens) <= 300


def test_what_is_out_of_view_does_not_make_it_read_again_and_again(
    pipeline: Pipeline, counted: dict[str, Counted]
) -> None:
    session = pipeline.open_session(config=SessionConfig(turns=8, llm_turns=3, llm_tokens=2000))
    began, read = set(), []
    for number in range(1, 31):
        counted[LLAMA].n_tokens.clear()
        session.append(Utterance(number, "A", f"Yes, {number}."))
        read.append(counted[LLAMA].n_tokens[0])
        settled(session)
        began.add(session._history.llm_first)
    assert began == {0, 6, 12, 18, 24}  # when the ninth is said three are kept, and there is room for five more
    assert max(read) <= min(read) + 4  # numbers of two digits


def test_where_the_fusion_is_sure_nothing_is_asked(report: BundleReport, counted: dict[str, Counted]) -> None:
    def load(part: PartFiles) -> Counted:
        return counted.setdefault(part.name, Counted(report, part))

    sure = Pipeline(report.bundle, load_part=load, asked_below=0.0)
    alone = Pipeline(report.bundle, load_part=load, llm="none")
    sessions = sure.open_session(), alone.open_session()
    for utterance in talk(6):
        first, second = (session.append(utterance) for session in sessions)
        for emotion in EMOTIONS:
            expected = second.utterance.probabilities[emotion]
            assert first.utterance.probabilities[emotion] == pytest.approx(expected, abs=1e-5)
    assert counted[LLAMA].n_tokens == []


def test_a_cancelled_question_does_not_disturb_the_next(report: BundleReport) -> None:
    class Slow(Counted):
        """Waits until it is let go, and sees whether it is run twice at once."""

        go_on = threading.Event()
        entered = threading.Event()
        n_running = most_running = 0

        def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
            Slow.n_running += 1
            Slow.most_running = max(Slow.most_running, Slow.n_running)
            Slow.entered.set()
            Slow.go_on.wait(20)
            outputs = super().run(inputs)
            Slow.n_running -= 1
            return outputs

    def load(part: PartFiles) -> Counted:
        return (Slow if part.name == LLAMA else Counted)(report, part)

    async def listen() -> list[float]:
        session = Pipeline(report.bundle, load_part=load).open_session()
        for utterance in talk(3):
            Slow.entered.clear()
            Slow.go_on.clear()
            cancelled = asyncio.create_task(session.append_async(utterance))
            assert await asyncio.to_thread(Slow.entered.wait, 20)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            again = asyncio.create_task(session.append_async(replace(utterance, text="Another thing, then.")))
            await asyncio.sleep(0.3)  # long enough to reach the graph, where nothing holds it back
            Slow.go_on.set()
            update = await again
        return list(update.utterance.probabilities.values())

    found = asyncio.run(listen())
    plain = Pipeline(report.bundle, load_part=lambda part: Counted(report, part)).open_session()
    for utterance in talk(3):
        expected = plain.append(replace(utterance, text="Another thing, then."))
    assert found == pytest.approx(list(expected.utterance.probabilities.values()), abs=2e-3)
    assert Slow.most_running == 1


def test_a_snapshot_holds_soft_tokens_and_answers(pipeline: Pipeline) -> None:
    import numpy as np

    session = pipeline.open_session()
    for utterance in talk(3):
        noise = np.random.default_rng(utterance.id).normal(0, 0.1, 8000).astype(np.float32)
        session.append(utterance, samples=noise if utterance.id == 2 else None)
    restored = pipeline.restore_session(session.snapshot())
    first, second = (json.loads(one.analysis().to_json()) for one in (session, restored))
    assert {**first, "timings_ms": None} == {**second, "timings_ms": None}
    assert restored._history.soft is not None
    assert restored._history.soft.has_nonverbal.tolist() == [False, True, False]
    assert np.any(restored._history.soft.tokens[1])
