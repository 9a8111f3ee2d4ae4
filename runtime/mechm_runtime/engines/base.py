"""What every inference engine has in common: its configuration and the protocol of a loaded graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mechm_runtime.bundle.precision import ENGINE_NAMES, GPU_ENGINE, EngineName
from mechm_runtime.system.arrays import Array, Arrays
from mechm_runtime.system.cores import usable_cores

CPU = "CPUExecutionProvider"
MAX_THREADS = 4
"""Threads inside an operator unless more are asked for: graphs of this size gain little from more."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How graphs are run.

    engine: what runs them; `onnxruntime-gpu` is onnxruntime on CUDA, with nothing left to the CPU that takes time.
    provider: an onnxruntime execution provider's name, for the engine `onnxruntime`.
    n_threads: threads inside an operator; 0 takes one a whole core of this process's share, at most four.
    n_lanes: encoders that run side by side for a pipeline; 0 for as many as threads inside an operator, so that one
        thread means one.
    spin: whether threads wait by spinning. Off: on shared cores it costs more than it saves (DESIGN.md: p50 10.9
        against 14.5 ms).
    """

    provider: str = CPU
    n_threads: int = 0
    spin: bool = False
    engine: EngineName = "onnxruntime"
    n_lanes: int = 0

    def __post_init__(self) -> None:
        if self.n_threads < 0:
            raise ValueError(f"n_threads={self.n_threads} is negative")
        if self.n_lanes < 0:
            raise ValueError(f"n_lanes={self.n_lanes} is negative")
        if self.engine not in ENGINE_NAMES:
            raise ValueError(f"engine {self.engine!r}")
        if self.engine != "onnxruntime" and self.provider != CPU:
            raise ValueError(f"{self.provider} is onnxruntime's, and the engine is {self.engine}")

    @property
    def execution_provider(self) -> str:
        """The onnxruntime execution provider that runs the graphs, where onnxruntime runs them."""
        return CUDA if self.engine == GPU_ENGINE else self.provider

    @property
    def threads(self) -> int:
        """The number of threads that will be used."""
        return self.n_threads or max(1, min(MAX_THREADS, int(usable_cores())))

    @property
    def lanes(self) -> int:
        """The number of encoders that will run side by side."""
        return self.n_lanes or self.threads


class GraphRunner(Protocol):
    """What the pipeline needs of a graph, whatever runs it."""

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Arrays by input name to arrays by output name."""


CUDA = "CUDAExecutionProvider"
