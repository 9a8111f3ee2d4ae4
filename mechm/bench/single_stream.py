"""MLPerf's single-stream scenario: each query is sent when the last is answered; MECHM and rivals take turns.

A round has every rival once and MECHM several times between them, so that a machine that slows down slows all of them.
A pause follows each rival: vLLM's server keeps cores busy for about a second after its answer. The speedup over a rival
is the median over the rounds of its time divided by the median time of MECHM in the same round.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mechm.bench.systems import System
from mechm.bench.timing import Latency
from mechm_runtime.system.progress import Progress
from mechm_runtime.types import Conversation

PAUSE_S = 2.0
"""After a rival's query."""


@dataclass(frozen=True, slots=True)
class SystemTimes:
    """One system on one conversation.

    first_ms: the first query, which loads encoders, allocates memory and, for torch.compile, compiles. stages_ms:
    medians by stage. same_labels: utterances, of `n_utterances`, with the label that the first MECHM system gives.
    """

    system: str
    is_rival: bool
    llm: bool
    first_ms: float
    latency: Latency
    stages_ms: dict[str, float]
    same_labels: int
    n_utterances: int


@dataclass(frozen=True, slots=True)
class Speedup:
    """The rival's time as a multiple of MECHM's: median, lowest and highest of the rounds."""

    rival: str
    own: str
    times: float
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class SingleStream:
    """conversation: the analysed conversation in words."""

    conversation: str
    n_rounds: int
    systems: tuple[SystemTimes, ...]
    speedups: tuple[Speedup, ...]


@dataclass(slots=True)
class _Measured:
    system: System
    first_ms: float
    labels: tuple[str | None, ...]
    rounds: list[list[float]]
    stages: dict[str, list[float]]

    def run(self, conversation: Conversation) -> None:
        start = time.perf_counter()
        analysis = self.system.analyze(conversation)
        self.rounds[-1].append(1000 * (time.perf_counter() - start))
        for stage, ms in analysis.timings_ms.items():
            self.stages.setdefault(stage, []).append(ms)


def run_single_stream(
    own: Sequence[System],
    rivals: Sequence[System],
    conversation: Conversation,
    described: str,
    *,
    n_rounds: int,
    n_repeats: int,
    on_progress: Progress,
    pause_s: float = PAUSE_S,
) -> SingleStream:
    """Measure prepared systems.

    described: the conversation in words, for the result. n_rounds: queries per rival. n_repeats: queries per MECHM
    system, at least one per round. pause_s: after a rival's query.
    """
    measured = []
    for done, system in enumerate((*own, *rivals)):
        on_progress(f"first query: {system.name}", done, len(own) + len(rivals))
        start = time.perf_counter()
        analysis = system.analyze(conversation)
        first_ms = 1000 * (time.perf_counter() - start)
        labels = tuple(u.emotion for u in analysis.utterances)
        measured.append(_Measured(system, round(first_ms, 3), labels, [], {}))
        if system in rivals:
            time.sleep(pause_s)
    ours, theirs = measured[: len(own)], measured[len(own) :]
    share = max(1, -(-n_repeats // n_rounds))
    for number in range(n_rounds):
        on_progress("single stream", number, n_rounds)
        for one in measured:
            one.rounds.append([])
        waiting = list(theirs)
        for turn in range(share):
            for one in ours:
                one.run(conversation)
            # The rivals' queries are spread evenly between ours.
            while waiting and (len(theirs) - len(waiting) + 1) * share <= (turn + 1) * len(theirs):
                waiting.pop(0).run(conversation)
                time.sleep(pause_s)
    on_progress("single stream", n_rounds, n_rounds)
    return SingleStream(
        described,
        n_rounds,
        tuple(_times(one, measured[0].labels, is_rival=one in theirs) for one in measured),
        tuple(_speedup(rival, one) for rival in theirs for one in ours if one.system.llm == rival.system.llm),
    )


def _times(one: _Measured, reference: Sequence[str | None], *, is_rival: bool) -> SystemTimes:
    return SystemTimes(
        one.system.name,
        is_rival,
        one.system.llm,
        one.first_ms,
        Latency.of([ms for taken in one.rounds for ms in taken]),
        {stage: round(float(np.median(ms)), 3) for stage, ms in one.stages.items()},
        sum(label == other for label, other in zip(one.labels, reference, strict=True)),
        len(one.labels),
    )


def _speedup(rival: _Measured, own: _Measured) -> Speedup:
    times = [float(np.median(theirs) / np.median(ours)) for theirs, ours in zip(rival.rounds, own.rounds, strict=True)]
    median, least, most = (round(float(value), 2) for value in (np.median(times), min(times), max(times)))
    return Speedup(rival.system.name, own.system.name, median, least, most)
