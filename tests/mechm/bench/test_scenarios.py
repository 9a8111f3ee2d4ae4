"""Scenarios on systems whose speed is known: turns, ratios, arrivals, the rate that is found, what is analysed."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mechm.bench import scaling, session
from mechm.bench.offline import run_offline
from mechm.bench.server import MIN_QUERIES, arrival_times, run_server
from mechm.bench.session import times_around
from mechm.bench.single_stream import run_single_stream
from mechm.bench.systems import MechmConfig, MechmSystem
from mechm.bench.timing import Latency
from mechm.bench.workload import describe, sample_conversation, text_only, with_length, with_utterance_seconds
from mechm.cli.options.inputs import load_conversations
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.errors import InputError
from mechm_runtime.types import Analysis, Conversation, Utterance, UtteranceAnalysis

TALK = Conversation(
    "1",
    (Utterance(1, "A", "one", 0.0, 2.0), Utterance(2, "B", "two", 2.0, 5.0), Utterance(3, "A", "three", 8.0, 10.0)),
    Path("talk.mp4"),
)


class Sleeper:
    """Takes a known time for a conversation, nine tenths of it in a stage named model."""

    def __init__(self, name: str, seconds: float, log: list[str] | None = None, *, label: str = "joy") -> None:
        self.name, self.llm = name, False
        self._seconds, self._label = seconds, label
        self.log = [] if log is None else log

    def prepare(self) -> None:
        pass

    def analyze(self, conversation: Conversation) -> Analysis:
        self.log.append(self.name)
        time.sleep(self._seconds)
        utterances = tuple(
            UtteranceAnalysis(u.id, u.speaker, u.text, None, None, self._label, {}, ()) for u in conversation.utterances
        )
        return Analysis(conversation.id, utterances, (), {"model": 900 * self._seconds}, "none")


def silent(*_: object) -> None:
    return None


def test_percentiles_are_of_what_was_measured() -> None:
    samples = [float(ms) for ms in range(1, 101)]
    latency = Latency.of(samples)
    assert (latency.n, latency.samples_ms) == (100, tuple(samples))
    assert (latency.p50_ms, latency.p90_ms, latency.p99_ms) == (50.5, 90.1, 99.01)


def test_a_longer_conversation_tells_its_utterances_again() -> None:
    longer = with_length(TALK, 7)
    assert [u.id for u in longer.utterances] == [1, 2, 3, 4, 5, 6, 7]
    assert [u.text for u in longer.utterances] == ["one", "two", "three", "one", "two", "three", "one"]
    assert longer.utterances[3].start_s == 0.0
    assert with_length(TALK, 2).utterances == TALK.utterances[:2]


def test_utterances_of_another_length_stay_in_the_recording() -> None:
    for seconds in (1.0, 4.0, 10.0):
        slower = with_utterance_seconds(TALK, seconds)
        for u in slower.utterances:
            assert u.start_s is not None
            assert u.end_s is not None
            assert u.end_s - u.start_s == pytest.approx(seconds)
            assert u.start_s >= 0.0
            assert u.end_s <= 10.0
    with pytest.raises(InputError, match="longer recording"):
        with_utterance_seconds(TALK, 10.5)
    with pytest.raises(InputError, match="one recording"):
        with_utterance_seconds(text_only(TALK), 1.0)


def test_what_is_analysed_is_said() -> None:
    assert describe(TALK, ("text", "audio")) == "3 utterances, text, audio (7 s)"
    assert describe(text_only(with_length(TALK, 1)), ("text", "audio")) == "1 utterance, text"


def test_rivals_take_their_turns_between_ours_and_are_compared_round_by_round() -> None:
    log: list[str] = []
    quick, slow, slower = Sleeper("quick", 0.004, log), Sleeper("slow", 0.02, log), Sleeper("slower", 0.04, log)
    measured = run_single_stream(
        [quick], [slow, slower], TALK, "x", n_rounds=2, n_repeats=8, on_progress=silent, pause_s=0.0
    )
    assert log[:3] == ["quick", "slow", "slower"]  # the first queries, not counted
    one_round = ["quick", "quick", "slow", "quick", "quick", "slower"]
    assert log[3:] == one_round * 2
    assert [(one.system, one.latency.n, one.is_rival) for one in measured.systems] == [
        ("quick", 8, False),
        ("slow", 2, True),
        ("slower", 2, True),
    ]
    times = {one.rival: one.times for one in measured.speedups}
    assert 2.5 < times["slow"] < 6.5
    assert times["slow"] < times["slower"] < 13
    assert measured.systems[1].stages_ms == {"model": pytest.approx(18.0)}


def test_labels_are_compared_with_those_of_ours() -> None:
    sleepers = [Sleeper("a", 0.0)], [Sleeper("b", 0.0, label="anger")]
    measured = run_single_stream(*sleepers, TALK, "x", n_rounds=1, n_repeats=1, on_progress=silent, pause_s=0.0)
    assert [(one.same_labels, one.n_utterances) for one in measured.systems] == [(3, 3), (0, 3)]


def test_a_rivals_server_is_given_time_to_come_to_rest() -> None:
    def seconds(pause_s: float) -> float:
        sleepers = [Sleeper("a", 0.0)], [Sleeper("b", 0.0), Sleeper("c", 0.0)]
        start = time.perf_counter()
        run_single_stream(*sleepers, TALK, "x", n_rounds=2, n_repeats=2, on_progress=silent, pause_s=pause_s)
        return time.perf_counter() - start

    assert seconds(0.1) > 0.6 > seconds(0.0)  # after each of two rivals: its first query, and two rounds


def test_offline_counts_what_all_workers_get_done() -> None:
    measured = run_offline(Sleeper("a", 0.02), [TALK] * 8, "x", n_workers=4, n_threads=1, on_progress=silent)
    assert measured.conversations_per_s == pytest.approx(4 / 0.02, rel=0.4)
    assert measured.utterances_per_s == pytest.approx(3 * measured.conversations_per_s, rel=1e-2)


def test_arrivals_are_a_poisson_process_that_only_its_pace_changes() -> None:
    times = np.array(arrival_times(50.0, 40.0))
    gaps = np.diff(times)
    assert len(times) == pytest.approx(2000, rel=0.1)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.1)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.15)  # of an exponential, mean and deviation are equal
    assert arrival_times(50.0, 40.0) == times.tolist()
    n = MIN_QUERIES
    assert np.allclose(np.array(arrival_times(5.0, 1e-9))[:n] / 10, times[:n])


@pytest.mark.parametrize(("bound_ms", "least", "most"), [(400.0, 0.3, 1.0), (5.0, 0.0, 0.0)])
def test_the_server_finds_a_rate_whose_p99_holds(bound_ms: float, least: float, most: float) -> None:
    served = run_server(
        Sleeper("a", 0.02),
        TALK,
        "x",
        bound_ms=bound_ms,
        capacity_per_s=50.0,
        n_workers=1,
        n_threads=1,
        duration_s=0.4,
        on_progress=silent,
    )
    assert least * 50.0 <= served.queries_per_s <= most * 50.0
    held = [trial.queries_per_s for trial in served.trials if trial.holds]
    assert served.queries_per_s == max(held, default=0.0)
    for trial in served.trials:
        assert not trial.holds or trial.latency.p99_ms <= bound_ms


def test_a_query_of_the_server_waits_for_those_before_it() -> None:
    """One worker, 20 ms a query, far more arrivals than that: the last ones wait for all the others."""
    served = run_server(
        Sleeper("a", 0.02),
        TALK,
        "x",
        bound_ms=10_000.0,
        capacity_per_s=2000.0,
        n_workers=1,
        n_threads=1,
        duration_s=0.01,
        on_progress=silent,
    )
    assert served.trials[-1].latency.p99_ms > 20 * MIN_QUERIES * 0.8


def test_workers_share_one_system() -> None:
    threads: set[int] = set()

    class Seen(Sleeper):
        def analyze(self, conversation: Conversation) -> Analysis:
            threads.add(threading.get_ident())
            return super().analyze(conversation)

    run_offline(Seen("a", 0.02), [TALK] * 6, "x", n_workers=3, n_threads=1, on_progress=silent)
    assert len(threads) == 4  # three workers, and the first run


def test_scaling_analyses_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    spans: list[float] = []

    class Seen(Sleeper):
        def analyze(self, conversation: Conversation) -> Analysis:
            lengths.append(len(conversation.utterances))
            spans.append(sum((u.end_s or 0.0) - (u.start_s or 0.0) for u in conversation.utterances))
            return super().analyze(conversation)

    monkeypatch.setattr(scaling, "MEASURED_S", 0.05)
    monkeypatch.setattr(scaling, "CALLERS", (1, 4))
    measured = scaling.run_scaling(Seen("a", 0.02), TALK, "x", on_progress=silent)
    assert [point.x for point in measured.utterances] == list(scaling.UTTERANCES)
    assert set(scaling.UTTERANCES) <= set(lengths)
    assert [point.x for point in measured.seconds] == [1.0, 3.0, 10.0], "the recording lasts ten seconds"
    assert {3.0, 9.0, 30.0} <= {round(seconds, 6) for seconds in spans}
    one, four = measured.callers
    assert four.per_s == pytest.approx(4 * one.per_s, rel=0.4)
    assert four.n >= 4
    words = scaling.run_scaling(Sleeper("a", 0.0), text_only(TALK), "x", on_progress=silent)
    assert words.seconds == ()


def test_sessions_are_timed_turn_by_turn_and_at_once(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MEASURED_S", 0.1)
    monkeypatch.setattr(session, "PAUSE_S", 0.0)
    monkeypatch.setattr(session, "SESSIONS", (1, 3))
    own = MechmSystem(open_bundle(tiny_bundle), MechmConfig("none", None, "onnxruntime", 1))
    (sample,) = load_conversations(*sample_conversation())
    measured = session.run_session(own, with_length(sample, 3), 2, turns=(2, 6), on_progress=silent)
    assert measured.utterance == "3 s of voice, 2 frames"
    assert measured.streamed is not None
    for newest in (measured.whole, measured.streamed):
        assert newest.latency.n == 6
        assert newest.turn_ms["2"] == pytest.approx(np.median(newest.latency.samples_ms[:3]), abs=1e-3)
        assert newest.turn_ms["6"] == pytest.approx(np.median(newest.latency.samples_ms[3:]), abs=1e-3)
        assert newest.session_kb > 1
    assert [at.n_sessions for at in measured.together] == [1, 3]
    assert all(at.utterances_per_s > 0 and at.session_kb > 0 for at in measured.together)
    words = session.run_session(own, text_only(sample), 2, turns=(2,), on_progress=silent)
    assert (words.utterance, words.streamed) == ("text", None)


def test_what_is_said_in_a_session_lasts_three_seconds_and_never_repeats() -> None:
    (sample,) = load_conversations(*sample_conversation())
    said = session.decoded_utterances(with_length(sample, 2), 3)
    for one in said:
        assert one.samples is not None
        assert one.frames is not None
        assert len(one.samples) == 3 * 16_000
        assert len(one.frames) == 3
    first, second = session._shifted(said[0], 1), session._shifted(said[0], 2)
    assert first.samples is not None
    assert first.frames is not None
    assert (first.utterance.id, second.utterance.id) == (1, 2)
    assert not np.array_equal(first.samples, second.samples)
    assert not np.array_equal(first.frames, second.frames)


def test_turns_are_compared_over_the_same_utterances() -> None:
    taken = list(range(1, 101))  # turn n took n ms
    assert times_around(taken, 5, 10) == list(range(1, 11))
    assert times_around(taken, 20, 10) == list(range(16, 26))
    assert times_around(taken, 100, 10) == list(range(91, 101))
    assert times_around(taken, 2, 10) == list(range(1, 11))
    assert times_around(taken[:4], 3, 10) == [1, 2, 3, 4]
