"""Runs the chosen scenarios one after the other and collects their results.

Systems are loaded here and given to the scenarios, which know what to measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal, get_args

from mechm.bench.accuracy import run_accuracy
from mechm.bench.limits import Limits, measure_limits
from mechm.bench.machine import describe_machine
from mechm.bench.offline import run_offline
from mechm.bench.results import Results
from mechm.bench.rivals import Baseline, RivalConfig, make_rival
from mechm.bench.rivals.per_utterance import PerUtteranceSystem
from mechm.bench.scaling import run_scaling
from mechm.bench.server import run_server
from mechm.bench.session import TURNS, run_session
from mechm.bench.single_stream import run_single_stream
from mechm.bench.stages import measure_stages
from mechm.bench.start import run_start
from mechm.bench.systems import MechmConfig, MechmSystem, System
from mechm.bench.workload import describe
from mechm_runtime.bundle.manifest import Bundle
from mechm_runtime.engines.spec import DEFAULT_ENGINE
from mechm_runtime.errors import MissingExtraError
from mechm_runtime.system.progress import Progress, StageProgress
from mechm_runtime.types import Conversation, LabelledConversation

Scenario = Literal["single-stream", "stages", "offline", "server", "session", "scaling", "start"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)


@dataclass(frozen=True, slots=True)
class Amounts:
    """How often and how long things are measured.

    n_repeats: single-stream queries per configuration of MECHM. n_rounds: per rival. n_starts: fresh processes per row.
    n_queries: of the offline scenario. turns: of a session at which its newest utterance is timed; the last ends it.
    bound_ms: that the server's p99 has to stay below. duration_s: of arrivals, per rate that the server tries.
    """

    n_repeats: int = 40
    n_rounds: int = 3
    n_starts: int = 3
    n_queries: int = 16
    turns: tuple[int, ...] = TURNS
    bound_ms: float = 2000.0
    duration_s: float = 8.0


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """Systems, scenarios and material of one run.

    own: configurations of MECHM. baselines: rivals; rivals: what they share. conversation: the one that is analysed.
    modalities: that all systems use; empty for those that the bundle's weights were trained on.
    gold: annotated conversations to score on, may be empty; gold_name: their file's name; n_short: how many of them
    rivals are scored on. command: the command line, for the record.
    """

    scenarios: tuple[Scenario, ...]
    own: tuple[MechmConfig, ...]
    conversation: Conversation
    n_threads: int
    rivals: RivalConfig
    modalities: tuple[str, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    gold: Sequence[LabelledConversation] = ()
    gold_name: str = ""
    n_short: int = 10
    amounts: Amounts = Amounts()
    command: str = ""


@dataclass(slots=True)
class _Run:
    config: BenchConfig
    bundle: Bundle
    report: Progress
    modalities: tuple[str, ...]
    described: str
    notes: list[str] = field(default_factory=list)

    def wants(self, scenario: Scenario) -> bool:
        return scenario in self.config.scenarios

    def step(self, name: str) -> StageProgress:
        return lambda done, total: self.report(name, done, total)

    def one_threaded(self) -> tuple[MechmConfig, ...]:
        """MECHM with one thread inside an operator, for scenarios whose callers keep all cores busy."""
        return tuple(replace(one, n_threads=1) for one in self.config.own)


def run_bench(bundle: Bundle, config: BenchConfig, on_progress: Progress) -> Results:
    """Measure everything that the config asks for.

    on_progress: called with the name of the step, the number done and the total (0 if unknown).
    Raises: MissingExtraError, InputError, WeightsError: a system lacks what it needs; all of them are loaded before
        anything is measured.
    """
    modalities = config.modalities or bundle.default_modalities
    run = _Run(config, bundle, on_progress, modalities, describe(config.conversation, modalities))
    results = Results(
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        command=config.command,
        bundle_id=bundle.id,
        preset=bundle.preset,
        n_threads=config.n_threads,
        machine=describe_machine(),
        modalities=config.modalities,
    )
    on_progress("loading the systems", 0, 0)
    own = [MechmSystem(bundle, one) for one in config.own]
    rivals = _rivals(run)
    systems: tuple[System, ...] = (*own, *rivals)
    for system in systems:
        system.prepare()
    limits = _limits(run) if run.wants("stages") else None
    results = replace(results, limits=limits)
    if run.wants("single-stream"):
        measured = run_single_stream(
            own,
            rivals,
            config.conversation,
            run.described,
            n_rounds=config.amounts.n_rounds,
            n_repeats=config.amounts.n_repeats,
            on_progress=on_progress,
        )
        results = replace(results, single_stream=measured)
    if config.gold:
        scored = run_accuracy(
            own, rivals, config.gold, config.gold_name, n_short=config.n_short, on_progress=on_progress
        )
        results = replace(results, accuracy=scored)
    del own, rivals, systems, system  # frees gigabytes of weights before memory and speed are measured alone
    results = _without_rivals(run, results, limits)
    return replace(results, notes=tuple(run.notes))


def _without_rivals(run: _Run, results: Results, limits: Limits | None) -> Results:
    """Run the scenarios of MECHM alone."""
    config = run.config
    if run.wants("stages"):
        stages = [
            measure_stages(
                run.bundle,
                one,
                config.conversation,
                limits=limits,
                n_repeats=max(1, config.amounts.n_repeats // 4),
                on_progress=run.step(f"stages: {one.name}"),
            )
            for one in config.own
        ]
        results = replace(results, stages=tuple(stages))
    if run.wants("start"):
        started = run_start(
            run.bundle.folder,
            config.own,
            config.conversation,
            run.modalities,
            n_runs=config.amounts.n_starts,
            on_progress=run.report,
        )
        results = replace(results, start=started)
    if run.wants("offline") or run.wants("server"):
        results = _under_load(run, results)
    if run.wants("session"):
        n_frames = run.bundle.fusion.n_frames
        held = [
            run_session(
                MechmSystem(run.bundle, one),
                config.conversation,
                n_frames,
                turns=config.amounts.turns,
                on_progress=run.report,
            )
            for one in config.own
        ]
        results = replace(results, session=tuple(held))
    if run.wants("scaling"):
        scaled = [
            run_scaling(MechmSystem(run.bundle, one), config.conversation, run.described, on_progress=run.report)
            for one in run.one_threaded()
        ]
        results = replace(results, scaling=tuple(scaled))
    return results


def _under_load(run: _Run, results: Results) -> Results:
    config = run.config
    offline, server = [], []
    for one in run.one_threaded():
        system = MechmSystem(run.bundle, one)
        measured = run_offline(
            system,
            [config.conversation] * config.amounts.n_queries,
            run.described,
            n_workers=config.n_threads,
            n_threads=1,
            on_progress=run.step(f"offline: {one.name}"),
        )
        offline.append(measured)
        if run.wants("server"):
            found = run_server(
                system,
                config.conversation,
                run.described,
                bound_ms=config.amounts.bound_ms,
                capacity_per_s=measured.conversations_per_s,
                n_workers=config.n_threads,
                n_threads=1,
                duration_s=config.amounts.duration_s,
                on_progress=run.step(f"server: {one.name}"),
            )
            server.append(found)
    return replace(results, offline=tuple(offline), server=tuple(server))


def _rivals(run: _Run) -> list[PerUtteranceSystem]:
    """Every rival without and with its Llama."""
    if not run.config.gold and not run.wants("single-stream"):
        return []
    made = [make_rival(name, run.bundle, run.config.rivals) for name in run.config.baselines]
    return [one for rival in made for one in ((rival.without_llama(), rival) if rival.llm else (rival,))]


def _limits(run: _Run) -> Limits | None:
    """The machine's limits; None without onnx, with a note on the missing shares."""
    if others := {one.engine for one in run.config.own} - {DEFAULT_ENGINE}:
        run.notes.append(
            f"stages without their share of the machine's limit: operations of {', '.join(others)} are not counted"
        )
        return None
    run.report("measuring the machine's limits", 0, 0)
    try:
        return measure_limits(run.config.n_threads)
    except MissingExtraError as error:
        run.notes.append(f"stages without their share of the machine's limit: {error}; {error.hint}")
        return None
