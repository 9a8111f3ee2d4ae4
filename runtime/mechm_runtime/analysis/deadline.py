"""Deadlines: running estimates of the cost of stages, and the stages that are left out so that a result is in time.

The cost of a stage is a line in its units (tokens, seconds of sound, frames, utterances), fitted by weighted least
squares to measurements on this machine, of which the last ten count most; the typical error of the estimates is added.
A stage that was never measured counts as free: it is tried, and measured from then on. This module runs no stage.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from mechm_runtime.bundle.modality import DROPPABLE_MODALITIES, MODALITY_SPECS, CostUnit
from mechm_runtime.errors import InputError
from mechm_runtime.system.after_fork import tell_after_fork

FINAL_STAGES = ("fusion", "decide")
"""Stages that put the result together, and come last; they are never left out."""
DROPPABLE = ("llm", *DROPPABLE_MODALITIES)
"""Stages that may be left out before they begin, in this order; text and audio are begun, and end when time is over."""
PARALLEL_STAGES = frozenset(spec.name for spec in MODALITY_SPECS)
"""Stages that run in lanes, side by side; `decode` runs beside them, all others after them."""

UNMEASURED_MS = 1.0
"""Milliseconds that a unit of a stage is taken to cost, where work is divided and no run of the stage was measured."""

DECAY = 0.9
"""Factor on the weight of earlier measurements at each new one: the last ten count most."""
SKIPPED_DECAY = 0.98
"""Factor on an estimate each time its stage is left out, so that one slow measurement does not bar it forever: the
estimate halves in about 34 requests."""


@dataclass(slots=True)
class _Line:
    """Milliseconds as a function of units, by weighted least squares; never falling, never below 0."""

    weight: float = 0.0
    units: float = 0.0
    ms: float = 0.0
    units_squared: float = 0.0
    units_ms: float = 0.0
    error_squared: float = 0.0
    """Weighted mean square error of the estimates made before each measurement."""
    scale: float = 1.0

    def add(self, units: float, ms: float) -> None:
        error = 0.0 if not self.weight else ms - self.at(units)
        self.scale = 1.0
        self.error_squared = DECAY * self.error_squared + (1 - DECAY) * error**2
        for name, value in (
            ("weight", 1.0),
            ("units", units),
            ("ms", ms),
            ("units_squared", units**2),
            ("units_ms", units * ms),
        ):
            setattr(self, name, DECAY * getattr(self, name) + value)

    def at(self, units: float) -> float:
        mean_units, mean_ms = self.units / self.weight, self.ms / self.weight
        variance = self.units_squared / self.weight - mean_units**2
        through_zero = mean_ms / mean_units if mean_units > 0 else 0.0
        # Measurements of about one size do not show how cost grows: proportionally, then.
        if variance <= 1e-3 * mean_units**2:
            return self.scale * through_zero * units
        slope = (self.units_ms / self.weight - mean_units * mean_ms) / variance
        if slope <= 0:
            return self.scale * max(mean_ms, through_zero * units)
        start = mean_ms - slope * mean_units
        return self.scale * (start + slope * units if start >= 0 else through_zero * units)


@dataclass(frozen=True, slots=True)
class Plan:
    """Stages to leave out, and how long the rest is expected to take."""

    left_out: tuple[str, ...]
    expected_ms: float


class CostEstimator:
    """Running estimates of the cost of stages. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: dict[str, _Line] = {}
        tell_after_fork(self)

    def observe(self, stage: str, units: float, ms: float) -> None:
        """Take in a measurement. units: of this stage, above 0; ms: wall-clock milliseconds."""
        if not (units > 0 and math.isfinite(units) and ms >= 0 and math.isfinite(ms)):
            return
        with self._lock:
            self._lines.setdefault(stage, _Line()).add(units, ms)

    def estimate_ms(self, stage: str, units: float) -> float | None:
        """Expected milliseconds of a run, the typical error added; None where no run was measured yet."""
        with self._lock:
            return self._estimate(stage, units)

    def plan(self, deadline_ms: float, remaining: Mapping[str, float], *, n_lanes: int = 1) -> Plan:
        """Choose the stages to leave out.

        deadline_ms: milliseconds that are left. remaining: stage -> units still to do. n_lanes: encoders that run side
        by side.
        """
        left_out: list[str] = []
        with self._lock:
            costs = {stage: self._estimate(stage, units) or 0.0 for stage, units in remaining.items()}
            expected = _wall_ms(costs, n_lanes)
            for stage in DROPPABLE:
                if expected <= deadline_ms:
                    break
                if stage in costs:
                    left_out.append(stage)
                    del costs[stage]
                    expected = _wall_ms(costs, n_lanes)
        return Plan(tuple(left_out), expected)

    def decay(self, stage: str) -> None:
        """Lower the estimate of a stage that was left out, since it is not measured again until it runs."""
        with self._lock:
            if stage in self._lines:
                self._lines[stage].scale *= SKIPPED_DECAY

    def after_fork(self) -> None:
        """Keep the estimates, with a lock of this process."""
        self._lock = threading.Lock()

    def _estimate(self, stage: str, units: float) -> float | None:
        line = self._lines.get(stage)
        if line is None:
            return None
        if units <= 0:
            return 0.0
        typical = line.units / line.weight
        # The error of a typical run, scaled to the size of this one.
        return line.at(units) + line.scale * math.sqrt(line.error_squared) * units / max(typical, 1e-9)


class NoDeadline:
    """The limit of a request without a deadline: none, unless the request is cancelled."""

    reason = "the request was cancelled"

    def __init__(self) -> None:
        self._is_cancelled = False

    def cancel(self) -> None:
        """End the request's work: what works in steps stops after the present one."""
        self._is_cancelled = True

    def left_s(self) -> float:
        """Infinite, or below 0 once cancelled."""
        return -math.inf if self._is_cancelled else math.inf

    def fits(self, stage: str, units: float) -> bool:  # noqa: ARG002 (as `Deadline.fits`)
        """Whether the request goes on."""
        return not self._is_cancelled


@dataclass(slots=True)
class Deadline:
    """The time limit of one request, its remaining work, and the stages left out for it. Thread-safe.

    ms: from the start of the request, which is `started` (`time.perf_counter`). n_lanes: encoders that run side
    by side. left_out: stages left out so far.
    Raises: InputError: not above 0.
    """

    ms: float
    costs: CostEstimator
    n_lanes: int = 1
    started: float = field(default_factory=time.perf_counter)
    left_out: list[str] = field(default_factory=list)
    _remaining: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _is_cancelled: bool = False

    def __post_init__(self) -> None:
        if not (self.ms > 0 and math.isfinite(self.ms)):
            raise InputError(f"a deadline of {self.ms} ms", hint="give milliseconds above 0")

    @property
    def reason(self) -> str:
        """The reason given in results for a stage that was left out."""
        return f"left out to meet the deadline of {self.ms:g} ms"

    def cancel(self) -> None:
        """End the request's work: what works in steps stops after the present one."""
        self._is_cancelled = True

    def left_s(self) -> float:
        """Seconds left for encoders and the Llama: what fusion and decision are expected to take is subtracted.

        Below 0 when that time is over, or once cancelled.
        """
        if self._is_cancelled:
            return -math.inf
        with self._lock:
            to_come = {stage: self._remaining[stage] for stage in FINAL_STAGES if stage in self._remaining}
        reserved_ms = sum(self.costs.estimate_ms(stage, units) or 0.0 for stage, units in to_come.items())
        return (self._left_ms() - reserved_ms) / 1000

    def fits(self, stage: str, units: float) -> bool:
        """Whether work of a stage is expected to be done in the time left; see `UNMEASURED_MS`."""
        ms = self.costs.estimate_ms(stage, units)
        return (UNMEASURED_MS * units if ms is None else ms) <= 1000 * self.left_s()

    def late_ms(self) -> float:
        """Milliseconds since the deadline; 0 before it."""
        return max(0.0, -self._left_ms())

    def expect(self, stage: str, units: float) -> None:
        """Add work to come."""
        with self._lock:
            self._remaining[stage] = self._remaining.get(stage, 0.0) + units

    def expect_work(
        self,
        modalities: Collection[str],
        *,
        n_tokens: int | None = None,
        sound_s: float | None = None,
        n_frames: int | None = None,
        n_llm_tokens: int | None = None,
        n_utterances: float | None = None,
    ) -> None:
        """Add the work on some utterances; None where a stage has none, or its amount is added later.

        modalities: those that the pipeline uses; others have no stage. n_tokens: tokens for the text encoder. sound_s:
        seconds of sound. n_frames: video frames. n_llm_tokens: tokens of the words that the LLM is asked about.
        n_utterances: for the fusion and the decision.
        """
        of_unit: dict[CostUnit, float | None] = {"tokens": n_tokens, "seconds": sound_s, "frames": n_frames}
        units = {spec.name: of_unit[spec.cost_unit] for spec in MODALITY_SPECS if spec.name in modalities}
        final = dict.fromkeys(FINAL_STAGES, n_utterances)
        for stage, number in (*units.items(), *final.items(), ("llm", n_llm_tokens)):
            if number is not None:
                self.expect(stage, number)

    def finish(self, stage: str, units: float) -> None:
        """Subtract work that was done."""
        with self._lock:
            if stage in self._remaining:
                self._remaining[stage] = max(0.0, self._remaining[stage] - units)

    def admits(self, stage: str) -> bool:
        """Whether there is time for a stage, as estimated now; a stage that was left out once stays so."""
        with self._lock:
            if stage in self.left_out:
                return False
            remaining = {s: n for s, n in self._remaining.items() if s not in self.left_out}
            plan = self.costs.plan(self._left_ms(), remaining, n_lanes=self.n_lanes)
            for dropped in plan.left_out:
                self.left_out.append(dropped)
                self.costs.decay(dropped)
            return stage not in self.left_out

    def _left_ms(self) -> float:
        return self.ms - 1000 * (time.perf_counter() - self.started)


def _wall_ms(costs: Mapping[str, float], n_lanes: int) -> float:
    """Wall-clock milliseconds of work of which some runs in lanes."""
    lanes = sum(ms for stage, ms in costs.items() if stage in PARALLEL_STAGES) / max(1, n_lanes)
    rest = sum(ms for stage, ms in costs.items() if stage not in PARALLEL_STAGES and stage != "decode")
    return max(lanes, costs.get("decode", 0.0)) + rest
