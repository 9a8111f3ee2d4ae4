"""One exported graph on an inference engine: onnxruntime here, others beside, chosen in one place (`load_engine`).

It knows nothing of what the graph computes. A provider that was asked for and did not load is an error.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from mechm_runtime.engines.onnxruntime_cuda import (
    CUDA,
    CUDA_OPTIONS,
    GPU_ENGINE,
    RECORD_ASSIGNMENT,
    check_assignment,
    cuda_absent,
    cuda_did_not_load,
)
from mechm_runtime.errors import BundleError, MissingExtraError, ProviderError
from mechm_runtime.system.after_fork import tell_after_fork
from mechm_runtime.system.cores import usable_cores

Array = npt.NDArray[Any]

CPU = "CPUExecutionProvider"
DOCTOR = "mechm doctor tells what works and what to install"

EngineName = Literal["onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx"]
ENGINE_NAMES: tuple[EngineName, ...] = get_args(EngineName)

W8 = "w8"
"""A precision beside fp32 and int8: int8 weights with a scale a channel, in plain ONNX. Where the graph says no scales
of the activations, how it is computed is the engine's choice."""

HALF: tuple[str, ...] = ("fp16", "bf16")
"""Precisions of graphs for GPUs, the one that is preferred first; a part has one of them at most."""

MAX_THREADS = 4
"""Threads inside an operator unless more are asked for: graphs of this size gain little from more."""

LEFT_OUT: tuple[str, ...] = ("SkipLayerNormFusion",)
"""Rewritings of onnxruntime's that a CPU does without. It joins a sum and the layer normalization behind it to an
operator that computes number by number, where the one for a normalization alone computes with vectors (1.32): the text
encoder in int8 takes 45 ms for 128 tokens in place of 55 (`benchmarks/sums_before_norms.py`, an Intel Xeon)."""

UNREADABLE = ("InvalidGraph", "InvalidProtobuf", "NoSuchFile")
"""onnxruntime's exceptions that speak of the file. It raises its own types, which share no base and are not public."""


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

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays by input name to arrays by output name."""


def load_engine(path: Path, config: EngineConfig) -> GraphRunner:
    """A graph file on the engine that the config names: onnxruntime, on CPU or CUDA, or openvino.

    Raises: MissingExtraError, ProviderError, BundleError. ValueError: a TensorRT, which runs what was built from a
        bundle (`tensorrt.engine.load_part`).
    """
    if config.engine in ("onnxruntime", GPU_ENGINE):
        return Engine(path, config)
    if config.engine != "openvino":
        raise ValueError(f"{config.engine} runs no ONNX file")
    from mechm_runtime.engines.openvino_engine import OpenVinoEngine

    return OpenVinoEngine(path, config)


class Engine:
    """A graph loaded by onnxruntime. `run` may be called from several threads at once.

    In a forked process a graph that runs in threads of its own is loaded again when it is first run; with one thread
    it is shared. Such a process ends with `os._exit`, as multiprocessing's do: onnxruntime waits for ever for threads
    that are not there where it exits otherwise.

    Raises: MissingExtraError: no onnxruntime. ProviderError: the provider is not there or does not load. BundleError:
        the file is missing or no graph.
    """

    def __init__(self, path: Path, config: EngineConfig) -> None:
        self._path = path
        self._config = config
        self._is_elsewhere = False  # whether its threads, or its device, belong to the process this one was forked from
        self._lock = threading.Lock()
        self._session = self._load()
        self.input_names: tuple[str, ...] = tuple(i.name for i in self._session.get_inputs())
        self.output_names: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())
        tell_after_fork(self)

    def _load(self) -> Any:
        path, config = self._path, self._config
        provider, is_gpu_engine = config.execution_provider, config.engine == GPU_ENGINE
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime", extra="gpu" if is_gpu_engine else "cpu") from error
        if provider not in onnxruntime.get_available_providers():
            if is_gpu_engine:
                raise cuda_absent()
            raise ProviderError(f"{provider} is not in this onnxruntime", hint=DOCTOR)
        if provider in (CUDA, "TensorrtExecutionProvider"):
            onnxruntime.preload_dlls()  # CUDA libraries that came as pip packages lie where no linker looks
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = config.threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if config.spin else "0")
        settings: dict[str, str] = {}
        if is_gpu_engine:
            settings = dict(CUDA_OPTIONS)
            options.add_session_config_entry(RECORD_ASSIGNMENT, "1")
        try:
            session = onnxruntime.InferenceSession(
                str(path),
                options,
                providers=[(provider, settings)],
                disabled_optimizers=LEFT_OUT if provider == CPU else None,
            )
        except Exception as error:
            reason = str(error).partition("\n")[0][:200]
            if provider == CPU or type(error).__name__ in UNREADABLE:
                raise BundleError(f"{path.name} cannot be loaded: {reason}", hint="make the bundle again") from error
            if is_gpu_engine:
                raise cuda_did_not_load(reason) from error
            raise ProviderError(f"{provider} did not load: {reason}", hint=DOCTOR) from error
        # onnxruntime falls back to the CPU with only a line on stderr.
        if session.get_providers()[0] != provider:
            raise cuda_did_not_load("") if is_gpu_engine else ProviderError(f"{provider} did not load", hint=DOCTOR)
        if is_gpu_engine:
            check_assignment(session, path.name)
        return session

    def after_fork(self) -> None:
        """Do without the threads of the process that this one was forked from."""
        self._lock = threading.Lock()
        if self._config.execution_provider != CPU or self._config.threads > 1:
            # Never destroyed here: that would wait for its threads.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))
            self._is_elsewhere = True

    def _here(self) -> Any:
        """The session of this process.

        Raises: ProviderError: it is on a device that a forked process cannot use.
        """
        with self._lock:
            if self._is_elsewhere:
                if self._config.execution_provider != CPU:
                    raise ProviderError(
                        f"{self._config.execution_provider} does not survive a fork",
                        hint="start the process with spawn, or make the pipeline in it",
                    )
                self._session = self._load()
                self._is_elsewhere = False
            return self._session

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph: arrays by input name to arrays by output name.

        A graph keeps only inputs that it uses; others are passed over.
        """
        feeds = {name: np.ascontiguousarray(inputs[name]) for name in self.input_names}
        outputs: list[Any] = list(self._here().run(None, feeds))
        return dict(zip(self.output_names, outputs, strict=True))
