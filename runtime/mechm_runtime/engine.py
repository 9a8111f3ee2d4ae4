"""One exported graph on onnxruntime: the session, its provider and its threads.

It knows nothing of what the graph computes. A provider that was asked for and did not load is an error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mechm_runtime.errors import BundleError, MissingExtraError, ProviderError

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How graphs are run.

    provider: an onnxruntime execution provider's name.
    n_threads: threads inside an operator; 0 takes one a core of this process's share, at most four.
    spin: whether threads wait by spinning. Off: on shared cores it costs more than it saves (DESIGN.md: p50 10.9
        against 14.5 ms).
    """

    provider: str = "CPUExecutionProvider"
    n_threads: int = 0
    spin: bool = False

    def __post_init__(self) -> None:
        if self.n_threads < 0:
            raise ValueError(f"n_threads={self.n_threads} is negative")

    @property
    def threads(self) -> int:
        """The number of threads that will be used."""
        return self.n_threads or min(4, available_cores())


class GraphRunner(Protocol):
    """What the pipeline needs of a graph, whatever runs it."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays by input name to arrays by output name."""


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Engine:
    """A loaded graph. `run` may be called from several threads at once."""

    def __init__(self, path: Path, config: EngineConfig) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime", extra="cpu") from error
        if config.provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
            onnxruntime.preload_dlls()  # CUDA libraries that came as pip packages lie where no linker looks
        if config.provider not in onnxruntime.get_available_providers():
            raise ProviderError(
                f"{config.provider} is not in this onnxruntime",
                hint="mechm doctor tells what works and what to install",
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = config.threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if config.spin else "0")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=[config.provider])
        except Exception as error:  # onnxruntime raises its own types, not exported as one base class
            raise BundleError(f"{path.name} cannot be loaded: {str(error).splitlines()[0][:200]}") from error
        # onnxruntime falls back to the CPU with only a line on stderr.
        if self._session.get_providers()[0] != config.provider:
            raise ProviderError(f"{config.provider} did not load", hint="mechm doctor")
        self.input_names: tuple[str, ...] = tuple(i.name for i in self._session.get_inputs())
        self.output_names: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph: arrays by input name to arrays by output name.

        A graph keeps only inputs that it uses; others are passed over.
        """
        feeds = {name: np.ascontiguousarray(inputs[name]) for name in self.input_names}
        outputs: list[Any] = list(self._session.run(None, feeds))
        return dict(zip(self.output_names, outputs, strict=True))
