"""One exported graph on onnxruntime. It knows nothing of what the graph computes.

A provider that was asked for and did not load is an error. Engines that are onnxruntime with a certain provider derive
from `OnnxRuntimeEngine`.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.spec import CPU, CUDA
from mechm_runtime.errors import BundleError, MissingExtraError, ProviderError
from mechm_runtime.system.after_fork import tell_after_fork
from mechm_runtime.system.arrays import Array, Arrays
from mechm_runtime.system.telemetry import import_onnxruntime

DOCTOR = "mechm doctor tells what works and what to install"

DISABLED_OPTIMIZERS: tuple[str, ...] = ("SkipLayerNormFusion",)
"""onnxruntime graph optimizers that slow CPUs down, disabled here. This one joins a sum and the layer normalization
behind it to an operator that computes number by number, where the one for a normalization alone computes with vectors
(1.32): the text encoder in int8 takes 45 ms for 128 tokens in place of 55 (`benchmarks/sums_before_norms.py`, an Intel
Xeon)."""

UNREADABLE = ("InvalidGraph", "InvalidProtobuf", "NoSuchFile")
"""onnxruntime's exceptions that speak of the file. It raises its own types, which share no base and are not public."""


class OnnxRuntimeEngine:
    """A graph loaded by onnxruntime. `run` may be called from several threads at once.

    In a forked process a graph that runs in threads of its own is loaded again when it is first run; with one thread
    it is shared. Such a process ends with `os._exit`, as multiprocessing's do: onnxruntime waits for ever for threads
    that are not there where it exits otherwise.

    provider_options: settings of the execution provider. session_entries: settings of the session.
    Raises: MissingExtraError: no onnxruntime. ProviderError: the provider is not there or does not load. BundleError:
        the file is missing or no graph.
    """

    provider_options: ClassVar[Mapping[str, str]] = {}
    session_entries: ClassVar[Mapping[str, str]] = {}

    def __init__(self, path: Path, config: EngineConfig) -> None:
        self._path = path
        self._config = config
        self._provider = config.execution_provider
        self._is_elsewhere = False  # whether its threads, or its device, belong to the process this one was forked from
        self._lock = threading.Lock()
        self._session = self._load()
        self.input_names: tuple[str, ...] = tuple(i.name for i in self._session.get_inputs())
        self.output_names: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())
        tell_after_fork(self)

    def _load(self) -> Any:
        path, config, provider = self._path, self._config, self._provider
        try:
            onnxruntime = import_onnxruntime()
        except ImportError as error:
            raise MissingExtraError("onnxruntime", extra=config.spec.extra) from error
        if provider not in onnxruntime.get_available_providers():
            raise self._absent()
        if provider in (CUDA, "TensorrtExecutionProvider"):
            onnxruntime.preload_dlls()  # CUDA libraries that came as pip packages lie where no linker looks
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = config.threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if config.spin else "0")
        for name, value in self.session_entries.items():
            options.add_session_config_entry(name, value)
        try:
            session = onnxruntime.InferenceSession(
                str(path),
                options,
                providers=[(provider, dict(self.provider_options))],
                disabled_optimizers=DISABLED_OPTIMIZERS if provider == CPU else None,
            )
        except Exception as error:
            reason = str(error).partition("\n")[0][:200]
            if provider == CPU or type(error).__name__ in UNREADABLE:
                raise BundleError(
                    f"{path.name} cannot be loaded: {reason}",
                    hint="get the bundle again, as from mechm bundle fetch SOURCE --force",
                ) from error
            raise self._not_loaded(reason) from error
        # onnxruntime falls back to the CPU with only a line on stderr.
        if session.get_providers()[0] != provider:
            raise self._not_loaded("")
        self._check(session)
        return session

    def _absent(self) -> ProviderError:
        """The error where the installed onnxruntime was built without the provider."""
        return ProviderError(f"{self._provider} is not in this onnxruntime", hint=DOCTOR)

    def _not_loaded(self, reason: str) -> ProviderError:
        """The error where the provider is there and does not load. reason: onnxruntime's, may be empty."""
        return ProviderError(f"{self._provider} did not load{': ' if reason else ''}{reason}", hint=DOCTOR)

    def _check(self, session: Any) -> None:
        """Refuse a session that does not run as it was asked to.

        Raises: ProviderError.
        """

    def after_fork(self) -> None:
        """Do without the threads of the process that this one was forked from."""
        self._lock = threading.Lock()
        if self._provider != CPU or self._config.threads > 1:
            # Never destroyed here: that would wait for its threads.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))
            self._is_elsewhere = True

    def _here(self) -> Any:
        """The session of this process.

        Raises: ProviderError: it is on a device that a forked process cannot use.
        """
        with self._lock:
            if self._is_elsewhere:
                if self._provider != CPU:
                    raise ProviderError(
                        f"{self._provider} does not survive a fork",
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
