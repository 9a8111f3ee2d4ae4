"""What is left out so that an answer comes in time: running estimates of what stages cost, and a plan made from them.

A stage's cost is a line in its units (tokens, seconds of sound, frames, utterances), fitted to what was measured on
this machine, lately above all, with as much added as the measurements stray. What was never measured counts as free: it
is tried, and known from then on. It runs nothing and knows no pipeline.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from mechm_runtime.errors import InputError
from mechm_runtime.system.after_fork import tell_after_fork

DROPPABLE = ("llm", "scene", "face")
"""What may be left out, in this order. Words and voices never are."""
SIDE_BY_SIDE = frozenset(("text", "audio", "face", "scene"))
"""Stages that run in lanes; `decode` runs beside them, all others after them."""

KEPT = 0.9
"""What older measurements weigh beside a new one: the last ten count most."""
AGEING = 0.98
"""What is left of an estimate each time its stage is left out for it, so that one slow moment does not bar it forever:
an estimate halves in about 34 requests."""


@dataclass(slots=True)
class _Line:
    """Milliseconds by units, by weighted least squares, neither falling nor beginning below 0."""

    weight: float = 0.0
    units: float = 0.0
    ms: float = 0.0
    units_squared: float = 0.0
    units_ms: float = 0.0
    error_squared: float = 0.0
    """Of the estimates that came before each measurement."""
    scale: float = 1.0

    def add(self, units: float, ms: float) -> None:
        error = 0.0 if not self.weight else ms - self.at(units)
        self.scale = 1.0
        self.error_squared = KEPT * self.error_squared + (1 - KEPT) * error**2
        for name, value in (
            ("weight", 1.0),
            ("units", units),
            ("ms", ms),
            ("units_squared", units**2),
            ("units_ms", units * ms),
        ):
            setattr(self, name, KEPT * getattr(self, name) + value)

    def at(self, units: float) -> float:
        mean_units, mean_ms = self.units / self.weight, self.ms / self.weight
        variance = self.units_squared / self.weight - mean_units**2
        through_zero = mean_ms / mean_units if mean_units > 0 else 0.0
        # Measurements of about one size tell nothing of how cost grows: in proportion, then.
        if variance <= 1e-3 * mean_units**2:
            return self.scale * through_zero * units
        slope = (self.units_ms / self.weight - mean_units * mean_ms) / variance
        if slope <= 0:
            return self.scale * max(mean_ms, through_zero * units)
        start = mean_ms - slope * mean_units
        return self.scale * (start + slope * units if start >= 0 else through_zero * units)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to leave out, and how long the rest is expected to take."""

    left_out: tuple[str, ...]
    expected_ms: float


class CostEstimator:
    """Running estimates of what stages cost. Safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: dict[str, _Line] = {}
        tell_after_fork(self)

    def observe(self, stage: str, units: float, ms: float) -> None:
        """Learn from a run. units: of this stage, above 0; ms: wall-clock milliseconds."""
        if not (units > 0 and math.isfinite(units) and ms >= 0 and math.isfinite(ms)):
            return
        with self._lock:
            self._lines.setdefault(stage, _Line()).add(units, ms)

    def estimate_ms(self, stage: str, units: float) -> float | None:
        """Milliseconds that a run is expected to take at most, usually; None where none was measured yet."""
        with self._lock:
            return self._estimate(stage, units)

    def plan(self, deadline_ms: float, work: Mapping[str, float], *, n_lanes: int = 1) -> Plan:
        """What to leave out of some work.

        deadline_ms: milliseconds that are left. work: stage -> units still to do. n_lanes: encoders side by side.
        """
        left_out: list[str] = []
        with self._lock:
            costs = {stage: self._estimate(stage, units) or 0.0 for stage, units in work.items()}
            expected = _wall_ms(costs, n_lanes)
            for stage in DROPPABLE:
                if expected <= deadline_ms:
                    break
                if stage in costs:
                    left_out.append(stage)
                    del costs[stage]
                    expected = _wall_ms(costs, n_lanes)
        return Plan(tuple(left_out), expected)

    def age(self, stage: str) -> None:
        """Trust an estimate a little less: its stage was left out for it, and is not measured."""
        with self._lock:
            if stage in self._lines:
                self._lines[stage].scale *= AGEING

    def after_fork(self) -> None:
        """Go on with what was learnt."""
        self._lock = threading.Lock()

    def _estimate(self, stage: str, units: float) -> float | None:
        line = self._lines.get(stage)
        if line is None:
            return None
        if units <= 0:
            return 0.0
        typical = line.units / line.weight
        # An error of a typical run, carried over to this one's size.
        return line.at(units) + line.scale * math.sqrt(line.error_squared) * units / max(typical, 1e-9)


@dataclass(slots=True)
class Deadline:
    """One request's time: what it has still to do, and what that leaves out. Safe between threads.

    ms: from the start of the request.
    Raises: InputError: not above 0.
    """

    ms: float
    costs: CostEstimator
    n_lanes: int = 1
    started: float = field(default_factory=time.perf_counter)
    left_out: list[str] = field(default_factory=list)
    _to_do: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if not (self.ms > 0 and math.isfinite(self.ms)):
            raise InputError(f"a deadline of {self.ms} ms", hint="give milliseconds above 0")

    @property
    def reason(self) -> str:
        """Why something is missing that was left out."""
        return f"left out to meet the deadline of {self.ms:g} ms"

    def expect(self, stage: str, units: float) -> None:
        """Count on some work to come."""
        with self._lock:
            self._to_do[stage] = self._to_do.get(stage, 0.0) + units

    def finish(self, stage: str, units: float) -> None:
        """Strike off some work that was done."""
        with self._lock:
            if stage in self._to_do:
                self._to_do[stage] = max(0.0, self._to_do[stage] - units)

    def admits(self, stage: str) -> bool:
        """Whether there is time for a stage, as things stand now; once left out it stays so."""
        with self._lock:
            if stage in self.left_out:
                return False
            left_ms = self.ms - 1000 * (time.perf_counter() - self.started)
            plan = self.costs.plan(
                left_ms, {s: n for s, n in self._to_do.items() if s not in self.left_out}, n_lanes=self.n_lanes
            )
            for dropped in plan.left_out:
                self.left_out.append(dropped)
                self.costs.age(dropped)
            return stage not in self.left_out


def _wall_ms(costs: Mapping[str, float], n_lanes: int) -> float:
    """How long work takes of which some runs side by side."""
    lanes = sum(ms for stage, ms in costs.items() if stage in SIDE_BY_SIDE) / max(1, n_lanes)
    rest = sum(ms for stage, ms in costs.items() if stage not in SIDE_BY_SIDE and stage != "decode")
    return max(lanes, costs.get("decode", 0.0)) + rest
