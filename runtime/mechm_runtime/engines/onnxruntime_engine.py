"""One exported graph on an inference engine: onnxruntime here, others beside, chosen in one place (`load_engine`).

It knows nothing of what the graph computes. A provider that was asked for and did not load is an error.
"""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from typing import Any

import numpy as np

from mechm_runtime.bundle.precision import GPU_ENGINE
from mechm_runtime.engines.base import CPU, CUDA, EngineConfig
from mechm_runtime.engines.onnxruntime_cuda import (
    CUDA_OPTIONS,
    RECORD_ASSIGNMENT,
    check_assignment,
    cuda_absent,
    cuda_did_not_load,
)
from mechm_runtime.errors import BundleError, MissingExtraError, ProviderError
from mechm_runtime.system.after_fork import tell_after_fork
from mechm_runtime.system.arrays import Array, Arrays

DOCTOR = "mechm doctor tells what works and what to install"


LEFT_OUT: tuple[str, ...] = ("SkipLayerNormFusion",)
"""Rewritings of onnxruntime's that a CPU does without. It joins a sum and the layer normalization behind it to an
operator that computes number by number, where the one for a normalization alone computes with vectors (1.32): the text
encoder in int8 takes 45 ms for 128 tokens in place of 55 (`benchmarks/sums_before_norms.py`, an Intel Xeon)."""

UNREADABLE = ("InvalidGraph", "InvalidProtobuf", "NoSuchFile")
"""onnxruntime's exceptions that speak of the file. It raises its own types, which share no base and are not public."""


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

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Run the graph: arrays by input name to arrays by output name.

        A graph keeps only inputs that it uses; others are passed over.
        """
        feeds = {name: np.ascontiguousarray(inputs[name]) for name in self.input_names}
        outputs: list[Any] = list(self._here().run(None, feeds))
        return dict(zip(self.output_names, outputs, strict=True))
