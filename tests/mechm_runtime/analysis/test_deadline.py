"""Costs of stages are learnt from runs; stages that do not fit into a deadline are left out in order and named."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mechm_runtime import Conversation, Pipeline, Utterance
from mechm_runtime.analysis.deadline import CostEstimator, Deadline
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.errors import InputError

WORK = {"text": 100.0, "audio": 10.0, "face": 30.0, "scene": 30.0, "fusion": 10.0, "llm": 100.0}


def learnt(**ms_per_unit: float) -> CostEstimator:
    costs = CostEstimator()
    for stage, ms in ms_per_unit.items():
        for units in (1.0, 10.0, 40.0, 100.0):
            costs.observe(stage, units, ms * units)
    return costs


def test_a_line_is_learnt_as_least_squares_has_it() -> None:
    random = np.random.default_rng(0)
    costs, units = CostEstimator(), random.uniform(1, 100, 60)
    ms = 20 + 3 * units
    for one, took in zip(units, ms, strict=True):
        costs.observe("text", one, took)
    for asked in (1.0, 50.0, 500.0):
        estimate = costs.estimate_ms("text", asked)
        assert estimate is not None
        assert estimate == pytest.approx(20 + 3 * asked, rel=0.1)


def test_one_measurement_is_carried_over_in_proportion() -> None:
    costs = CostEstimator()
    assert costs.estimate_ms("scene", 3) is None
    costs.observe("scene", 3, 90)
    assert costs.estimate_ms("scene", 3) == pytest.approx(90)
    assert costs.estimate_ms("scene", 42) == pytest.approx(30 * 42)
    assert costs.estimate_ms("scene", 0) == 0.0


def test_it_follows_a_machine_that_slows_down_and_is_wary_where_it_strays() -> None:
    costs = CostEstimator()
    for _ in range(30):
        costs.observe("face", 10, 100)
    steady = costs.estimate_ms("face", 10)
    assert steady == pytest.approx(100)
    for _ in range(40):
        costs.observe("face", 10, 300)
    assert costs.estimate_ms("face", 10) == pytest.approx(300, rel=0.1)
    straying = CostEstimator()
    for k in range(40):
        straying.observe("face", 10, 100 + 50 * (-1) ** k)
    estimate = straying.estimate_ms("face", 10)
    assert estimate is not None
    assert 130 < estimate < 180, "the mean is 100, the deviation 50"


@pytest.mark.parametrize(("units", "ms"), [(0, 5), (-1, 5), (5, -1), (float("nan"), 5), (5, float("inf"))])
def test_what_is_no_measurement_teaches_nothing(units: float, ms: float) -> None:
    costs = learnt(text=1.0)
    before = costs.estimate_ms("text", 7)
    costs.observe("text", units, ms)
    costs.observe("audio", units, ms)
    assert costs.estimate_ms("text", 7) == before
    assert costs.estimate_ms("audio", 7) is None


def test_cost_never_falls_below_nothing() -> None:
    costs = CostEstimator()
    for units, ms in ((10, 100), (20, 50), (5, 120), (100, 5000)):
        costs.observe("text", units, ms)
        for asked in (0.1, 1, 10, 1000):
            estimate = costs.estimate_ms("text", asked)
            assert estimate is not None
            assert estimate >= 0


@pytest.mark.parametrize(
    ("deadline_ms", "left_out", "expected_ms"),
    [
        (1000, (), 100 + 100 + 150 + 300 + 10 + 200),
        (860, (), 860),
        (859, ("llm",), 660),
        (659, ("llm", "scene"), 360),
        (359, ("llm", "scene", "face"), 210),
        (1, ("llm", "scene", "face"), 210),
        (-50, ("llm", "scene", "face"), 210),
    ],
)
def test_the_llama_goes_first_then_scenes_then_faces(
    deadline_ms: float, left_out: tuple[str, ...], expected_ms: float
) -> None:
    costs = learnt(text=1.0, audio=10.0, face=5.0, scene=10.0, fusion=1.0, llm=2.0)
    plan = costs.plan(deadline_ms + 1e-6, WORK)
    assert plan.left_out == left_out
    assert plan.expected_ms == pytest.approx(expected_ms)


def test_side_by_side_takes_less_and_decoding_is_hidden_behind_it() -> None:
    costs = learnt(text=1.0, audio=10.0, face=5.0, scene=10.0, fusion=1.0, llm=2.0, decode=40.0)
    assert costs.plan(1e9, WORK, n_lanes=2).expected_ms == pytest.approx(650 / 2 + 210)
    assert costs.plan(1e9, {**WORK, "decode": 10.0}, n_lanes=2).expected_ms == pytest.approx(400 + 210)


def test_what_is_not_there_is_not_left_out_and_what_is_unknown_is_tried() -> None:
    costs = learnt(text=1.0, scene=10.0)
    assert costs.plan(50, {"text": 100.0}).left_out == ()
    assert costs.plan(150, {"text": 100.0, "llm": 100.0, "face": 3.0}).left_out == ()
    assert costs.plan(150, {"text": 100.0, "scene": 100.0, "face": 3.0}).left_out == ("scene",)


def test_what_was_left_out_for_one_slow_moment_comes_back() -> None:
    costs = CostEstimator()
    costs.observe("llm", 100, 1000)
    n_left_out = 0
    while costs.plan(500, {"llm": 100.0}).left_out:
        costs.decay("llm")
        n_left_out += 1
    assert 30 <= n_left_out <= 40
    costs.observe("llm", 100, 1000)
    assert costs.plan(500, {"llm": 100.0}).left_out == ("llm",), "measured again, it is trusted again"


def test_a_deadline_looks_again_as_time_passes() -> None:
    costs = learnt(scene=1.0, llm=1.0)
    deadline = Deadline(150, costs)
    deadline.expect("scene", 60)
    deadline.expect("llm", 60)
    assert deadline.admits("scene")
    assert deadline.admits("llm")
    deadline.started -= 0.05  # it is 50 ms later, and nothing is done
    assert deadline.admits("scene")
    assert not deadline.admits("llm")
    deadline.finish("scene", 60)
    assert not deadline.admits("llm"), "left out, it stays so"
    assert deadline.left_out == ["llm"]
    assert deadline.reason == "left out to meet the deadline of 150 ms"


@pytest.mark.parametrize("ms", [0.0, -1.0, float("nan"), float("inf")])
def test_a_deadline_that_is_none_is_refused(ms: float, tiny_bundle: Path) -> None:
    pipeline = Pipeline.from_bundle(tiny_bundle, engine=EngineConfig(n_threads=1))
    with pytest.raises(InputError, match="a deadline of"):
        pipeline.analyze(Conversation("c", (Utterance(1, "A", "Hello."),)), deadline_ms=ms)


def test_threads_share_an_estimator() -> None:
    costs = CostEstimator()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: (costs.observe("text", 1 + k % 7, 2.0 * (1 + k % 7)), costs.plan(5, WORK)), range(400)))
    assert costs.estimate_ms("text", 10) == pytest.approx(20)


# In a pipeline


@pytest.fixture
def pipeline(tiny_bundle: Path) -> Any:
    with Pipeline.from_bundle(tiny_bundle, engine=EngineConfig(n_threads=1, n_lanes=2)) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def recording(repository: Path) -> Conversation:
    said = ("One.", "Two, and three.", "Four?")
    utterances = tuple(Utterance(k + 1, "AB"[k % 2], text, 2.0 * k, 2.0 * k + 2) for k, text in enumerate(said))
    return Conversation("c", utterances, repository / "sample" / "conversation.mp4")


def without_faces(pipeline: Pipeline, conversation: Conversation) -> list[set[str]]:
    return [set(u.modalities) - {"face"} for u in pipeline.analyze(conversation).utterances]


def test_costs_are_learnt_from_every_analysis(pipeline: Pipeline, recording: Conversation) -> None:
    pipeline.analyze(recording)
    for stage, units in (("text", 10), ("audio", 6), ("face", 9), ("scene", 9), ("fusion", 3)):
        estimate = pipeline.costs.estimate_ms(stage, units)
        assert estimate is not None
        assert 0 < estimate < 60_000


@pytest.mark.parametrize(
    ("slow", "left_out"), [("scene", {"scene"}), ("face", {"scene", "face"}), ("audio", {"scene", "face"})]
)
def test_what_does_not_fit_is_left_out_and_the_result_says_why(
    slow: str, left_out: set[str], pipeline: Pipeline, recording: Conversation
) -> None:
    pipeline.analyze(recording)
    for _ in range(20):
        pipeline.costs.observe(slow, 1, 1e6)
    analysis = pipeline.analyze(recording, deadline_ms=60_000)
    for utterance in analysis.utterances:
        assert {"text", "audio"} <= set(utterance.modalities)
        late = {m for m, reason in utterance.missing.items() if reason == "left out to meet the deadline of 60000 ms"}
        assert late == left_out
        assert not late & set(utterance.modalities)
    in_time = pipeline.analyze(recording)
    assert not any("deadline" in reason for u in in_time.utterances for reason in u.missing.values())


def test_enough_time_changes_nothing(pipeline: Pipeline, recording: Conversation) -> None:
    plain = pipeline.analyze(recording)
    timed = pipeline.analyze(recording, deadline_ms=1e9)
    assert replace(timed, timings_ms={}) == replace(plain, timings_ms={})


def test_clips_are_left_out_as_well(pipeline: Pipeline, recording: Conversation) -> None:
    clips = Conversation(
        "c", tuple(Utterance(u.id, u.speaker, u.text, media=recording.media) for u in recording.utterances)
    )
    pipeline.analyze(recording)
    for _ in range(20):
        pipeline.costs.observe("scene", 1, 1e6)
    for utterance in pipeline.analyze(clips, deadline_ms=60_000).utterances:
        assert "deadline" in utterance.missing["scene"]
        assert "audio" in utterance.modalities


class Busy:
    """Stands for a Llama that must not be asked."""

    def rescore(self, *_: object) -> None:
        raise AssertionError("there is no time for it")


def test_the_llama_is_left_out_first(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = Conversation("c", (Utterance(1, "A", "Hello."), Utterance(2, "B", None)))
    monkeypatch.setattr(pipeline, "_rescorer", Busy())
    pipeline.costs.observe("llm", 3, 1e6)
    said, unsaid = pipeline.analyze(conversation, deadline_ms=5000).utterances
    assert said.missing == {"llm": "left out to meet the deadline of 5000 ms"}
    assert "llm" not in unsaid.missing
    with pytest.raises(AssertionError, match="no time"):
        pipeline.analyze(conversation)


def test_text_alone_is_answered_however_short_the_time(pipeline: Pipeline) -> None:
    conversation = Conversation("c", (Utterance(1, "A", "Hello."), Utterance(2, "B", "Bye.")))
    plain = pipeline.analyze(conversation)
    started = time.perf_counter()
    timed = pipeline.analyze(conversation, deadline_ms=0.001)
    assert time.perf_counter() - started < 30
    assert replace(timed, timings_ms={}) == replace(plain, timings_ms={})
