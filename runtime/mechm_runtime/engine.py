"""One exported graph on an inference engine: onnxruntime here, others beside, chosen in one place (`load_engine`).

It knows nothing of what the graph computes. A provider that was asked for and did not load is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from mechm_runtime.cores import usable_cores
from mechm_runtime.errors import BundleError, MissingExtraError, ProviderError

Array = npt.NDArray[Any]

CPU = "CPUExecutionProvider"
DOCTOR = "mechm doctor tells what works and what to install"

EngineName = Literal["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]
ENGINE_NAMES: tuple[EngineName, ...] = get_args(EngineName)

W8 = "w8"
"""A precision beside fp32 and int8: int8 weights with a scale a channel, in plain ONNX. Where the graph says no scales
of the activations, how it is computed is the engine's choice."""

MAX_THREADS = 4
"""Threads inside an operator unless more are asked for: graphs of this size gain little from more."""

UNREADABLE = ("InvalidGraph", "InvalidProtobuf", "NoSuchFile")
"""onnxruntime's exceptions that speak of the file. It raises its own types, which share no base and are not public."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How graphs are run.

    engine: what runs them. provider: an onnxruntime execution provider's name.
    n_threads: threads inside an operator; 0 takes one a whole core of this process's share, at most four.
    spin: whether threads wait by spinning. Off: on shared cores it costs more than it saves (DESIGN.md: p50 10.9
        against 14.5 ms).
    """

    provider: str = CPU
    n_threads: int = 0
    spin: bool = False
    engine: EngineName = "onnxruntime"

    def __post_init__(self) -> None:
        if self.n_threads < 0:
            raise ValueError(f"n_threads={self.n_threads} is negative")
        if self.engine not in ENGINE_NAMES:
            raise ValueError(f"engine {self.engine!r}")
        if self.engine != "onnxruntime" and self.provider != CPU:
            raise ValueError(f"{self.provider} is onnxruntime's, and the engine is {self.engine}")

    @property
    def threads(self) -> int:
        """The number of threads that will be used."""
        return self.n_threads or max(1, min(MAX_THREADS, int(usable_cores())))


class GraphRunner(Protocol):
    """What the pipeline needs of a graph, whatever runs it."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays by input name to arrays by output name."""


def load_engine(path: Path, config: EngineConfig) -> GraphRunner:
    """A graph file on the engine that the config names: onnxruntime or openvino.

    Raises: MissingExtraError, ProviderError, BundleError. ValueError: a TensorRT, which runs what was built from a
        bundle (`tensorrt.engine.load_part`).
    """
    if config.engine == "onnxruntime":
        return Engine(path, config)
    if config.engine != "openvino":
        raise ValueError(f"{config.engine} runs no ONNX file")
    from mechm_runtime.openvino_engine import OpenVinoEngine

    return OpenVinoEngine(path, config)


class Engine:
    """A graph loaded by onnxruntime. `run` may be called from several threads at once.

    Raises: MissingExtraError: no onnxruntime. ProviderError: the provider is not there or does not load. BundleError:
        the file is missing or no graph.
    """

    def __init__(self, path: Path, config: EngineConfig) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime", extra="cpu") from error
        if config.provider not in onnxruntime.get_available_providers():
            raise ProviderError(
                f"{config.provider} is not in this onnxruntime",
                hint=DOCTOR,
            )
        if config.provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
            onnxruntime.preload_dlls()  # CUDA libraries that came as pip packages lie where no linker looks
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = config.threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if config.spin else "0")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=[config.provider])
        except Exception as error:
            reason = str(error).partition("\n")[0][:200]
            if config.provider == CPU or type(error).__name__ in UNREADABLE:
                raise BundleError(f"{path.name} cannot be loaded: {reason}", hint="make the bundle again") from error
            raise ProviderError(f"{config.provider} did not load: {reason}", hint=DOCTOR) from error
        # onnxruntime falls back to the CPU with only a line on stderr.
        if self._session.get_providers()[0] != config.provider:
            raise ProviderError(f"{config.provider} did not load", hint=DOCTOR)
        self.input_names: tuple[str, ...] = tuple(i.name for i in self._session.get_inputs())
        self.output_names: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph: arrays by input name to arrays by output name.

        A graph keeps only inputs that it uses; others are passed over.
        """
        feeds = {name: np.ascontiguousarray(inputs[name]) for name in self.input_names}
        outputs: list[Any] = list(self._session.run(None, feeds))
        return dict(zip(self.output_names, outputs, strict=True))
