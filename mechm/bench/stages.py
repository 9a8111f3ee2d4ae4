"""Time per part of a conversation, its share of the machine's limit, and the time around the model runs.

A part's share of the limit is the least time that its operations and bytes need on this machine, divided by the time it
took. Parts are timed one after the other, since they share the cores when run in parallel. The overhead is the wall
time of a conversation as the pipeline runs it, in parallel, divided by the sum of those model runs; both are measured
in turns.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mechm.bench.graph_cost import GraphCost, graph_cost
from mechm.bench.limits import Limits
from mechm.bench.systems import LoadPart, MechmConfig, MechmSystem
from mechm_runtime.bundle.manifest import Bundle
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.engines.spec import ENGINES
from mechm_runtime.system.progress import StageProgress
from mechm_runtime.types import Analysis, Conversation

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class PartShare:
    """One part on one conversation.

    n_runs: of its graph per conversation. ms: median over the repeats of their sum. ideal_ms: the least that they can
    take; None, like `share`, if the machine's limits were not measured. share: ideal_ms / ms.
    gops: billions of operations per second that were reached. operations_per_byte: arithmetic intensity.
    int8_share: share of the operations that are int8. uncounted: see `GraphCost`.
    """

    part: str
    n_runs: int
    ms: float
    ideal_ms: float | None
    share: float | None
    gops: float
    operations_per_byte: float
    int8_share: float
    uncounted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StageShares:
    """Medians over the repeats of one conversation.

    wall_ms: as the pipeline runs it, in parallel. model_ms: the sum of its model runs, one after the other. overhead:
    wall_ms / model_ms. sequential_ms: everything, one after the other. stages_ms: the pipeline's stages in that run.
    """

    system: str
    wall_ms: float
    sequential_ms: float
    model_ms: float
    overhead: float
    stages_ms: dict[str, float]
    parts: tuple[PartShare, ...]


@dataclass(slots=True)
class _Run:
    part: str
    ms: float
    feeds: Arrays | None


class _Recorder:
    """Times every run of a part; while `keeps` is True it stores the inputs, to count their operations later."""

    def __init__(self) -> None:
        self.runs: list[_Run] = []
        self.keeps = False

    def wrap(self, load: LoadPart) -> LoadPart:
        return lambda part: _Recorded(part.name, load(part), self)


class _Recorded:
    def __init__(self, part: str, runner: GraphRunner, recorder: _Recorder) -> None:
        self._part, self._runner, self._recorder = part, runner, recorder

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        start = time.perf_counter()
        outputs = self._runner.run(inputs)
        ms = 1000 * (time.perf_counter() - start)
        kept = {name: np.array(value) for name, value in inputs.items()} if self._recorder.keeps else None
        self._recorder.runs.append(_Run(self._part, ms, kept))
        return outputs


def measure_stages(
    bundle: Bundle,
    config: MechmConfig,
    conversation: Conversation,
    *,
    limits: Limits | None,
    n_repeats: int,
    on_progress: StageProgress,
) -> StageShares:
    """Analyse a conversation `n_repeats` times with every run of a part timed.

    limits: None leaves out ideal times and shares.
    """
    recorder = _Recorder()
    own, shipped = MechmSystem(bundle, config, recorder.wrap), MechmSystem(bundle, config)
    for system in (own, shipped):
        system.analyze(conversation)  # loads the parts and allocates memory
    recorder.runs.clear()
    recorder.keeps = True
    own.analyze(conversation)
    recorder.keeps = False
    costs = _costs(bundle, config, recorder.runs)
    walls, sequential, models = list[float](), list[float](), list[float]()
    by_part, stages = dict[str, list[float]](), dict[str, list[float]]()
    for done in range(n_repeats):
        recorder.runs.clear()
        walls.append(_timed(shipped, conversation)[0])
        taken, analysis = _timed(own, conversation)
        sequential.append(taken)
        models.append(sum(run.ms for run in recorder.runs))
        for part in {run.part for run in recorder.runs}:
            by_part.setdefault(part, []).append(sum(run.ms for run in recorder.runs if run.part == part))
        for stage, ms in analysis.timings_ms.items():
            stages.setdefault(stage, []).append(ms)
        on_progress(done + 1, n_repeats)
    return StageShares(
        own.name,
        _median(walls),
        _median(sequential),
        _median(models),
        round(float(np.median(np.array(walls) / np.array(models))), 3),
        {stage: _median(ms) for stage, ms in stages.items()},
        tuple(_share(part, costs[part], _median(by_part[part]), limits) for part in costs if part in by_part),
    )


def _timed(own: MechmSystem, conversation: Conversation) -> tuple[float, Analysis]:
    start = time.perf_counter()
    analysis = own.analyze(conversation)
    return 1000 * (time.perf_counter() - start), analysis


def _costs(bundle: Bundle, config: MechmConfig, runs: list[_Run]) -> dict[str, list[GraphCost]]:
    """Costs by part, one per run; equal shapes are profiled once."""
    known: dict[tuple[object, ...], GraphCost] = {}
    costs: dict[str, list[GraphCost]] = {}
    for run in runs:
        if run.feeds is None:
            continue
        part = bundle.parts[run.part]
        path = bundle.path(part.files[config.precision or ENGINES[config.engine].default_precision(part)])
        key = (run.part, *((name, value.shape) for name, value in sorted(run.feeds.items())))
        if key not in known:
            known[key] = graph_cost(path, run.feeds)
        costs.setdefault(run.part, []).append(known[key])
    return costs


def _share(part: str, costs: list[GraphCost], ms: float, limits: Limits | None) -> PartShare:
    ideal_ms = None if limits is None else sum(cost.ideal_ms(limits) for cost in costs)
    operations = sum(cost.operations for cost in costs)
    return PartShare(
        part,
        len(costs),
        ms,
        None if ideal_ms is None else round(ideal_ms, 3),
        None if ideal_ms is None else round(ideal_ms / ms, 3),
        round(operations / ms / 1e6, 2),
        round(operations / max(1, sum(cost.n_bytes for cost in costs)), 2),
        round(sum(cost.int8_operations for cost in costs) / max(1, operations), 3),
        tuple(sorted({name for cost in costs for name in cost.uncounted})),
    )


def _median(values: list[float]) -> float:
    return round(float(np.median(values)), 3)
