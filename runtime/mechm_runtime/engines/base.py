"""Configuration of inference engines, and the protocol of a graph that one of them has loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mechm_runtime.engines.spec import CPU, DEFAULT_ENGINE, ENGINES, EngineName, EngineSpec
from mechm_runtime.system.arrays import Array, Arrays
from mechm_runtime.system.cores import usable_cores

MAX_THREADS = 4
"""Threads inside an operator unless more are asked for: graphs of this size gain little from more."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Configuration of the engine that runs the graphs.

    engine: a name in `engines.spec.ENGINES`; `onnxruntime-gpu` is onnxruntime on CUDA, with nothing left to the CPU
        that takes time.
    provider: an onnxruntime execution provider's name, for the engine `onnxruntime`.
    n_threads: threads inside an operator; 0 takes one per whole core of this process's share, at most four.
    n_lanes: encoders that run side by side for a pipeline; 0 for as many as threads inside an operator, so that one
        thread means one.
    spin: whether threads wait by spinning. Off: on shared cores it costs more than it saves (DESIGN.md: p50 10.9
        against 14.5 ms).
    """

    provider: str = CPU
    n_threads: int = 0
    spin: bool = False
    engine: EngineName = DEFAULT_ENGINE
    n_lanes: int = 0

    def __post_init__(self) -> None:
        if self.n_threads < 0:
            raise ValueError(f"n_threads={self.n_threads} is negative")
        if self.n_lanes < 0:
            raise ValueError(f"n_lanes={self.n_lanes} is negative")
        if self.engine not in ENGINES:
            raise ValueError(f"engine {self.engine!r} is none of {', '.join(ENGINES)}")
        if not self.spec.takes_provider and self.provider != CPU:
            raise ValueError(f"{self.provider} is onnxruntime's, and the engine is {self.engine}")

    @property
    def spec(self) -> EngineSpec:
        """The engine's row in the table of engines."""
        return ENGINES[self.engine]

    @property
    def execution_provider(self) -> str:
        """The onnxruntime execution provider that runs the graphs, where onnxruntime runs them."""
        return self.provider if self.spec.takes_provider else self.spec.provider

    @property
    def is_onnxruntime_on_cpu(self) -> bool:
        """Whether onnxruntime runs the graphs, on the CPU."""
        return self.spec.takes_provider and self.provider == CPU

    @property
    def threads(self) -> int:
        """The number of threads that will be used."""
        return self.n_threads or max(1, min(MAX_THREADS, int(usable_cores())))

    @property
    def lanes(self) -> int:
        """The number of encoders that will run side by side."""
        return self.n_lanes or self.threads


class GraphRunner(Protocol):
    """A loaded graph, whatever runs it."""

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Arrays by input name to arrays by output name."""
