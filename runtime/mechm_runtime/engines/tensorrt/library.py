"""Find the installed TensorRT and the GPU.

`tensorrt-rtx` builds engines on any x86-64 machine, also without a GPU, for the compute capabilities it is told.
`tensorrt` builds on the GPU that the engine will run on. Both run engines on NVIDIA GPUs only.
"""

from __future__ import annotations

import importlib
import platform
from dataclasses import dataclass
from typing import Any, Literal

from mechm_runtime.errors import MissingExtraError, ProviderError

LibraryName = Literal["tensorrt", "tensorrt-rtx"]

MODULES: dict[LibraryName, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Import names. An extra of the same name as the library brings it, and CUDA's Python bindings."""


@dataclass(frozen=True, slots=True)
class Library:
    """An imported TensorRT.

    module: the Python module; untyped, since the library ships no annotations.
    version: its full version, which an engine must have been built with.
    """

    name: LibraryName
    module: Any
    version: str

    @property
    def needs_gpu(self) -> bool:
        """Whether building takes the GPU that the engine is for."""
        return self.name == "tensorrt"

    @property
    def compute_capabilities(self) -> tuple[str, ...]:
        """Those it can build for without a GPU, as in `86`; none for a library that needs one."""
        if self.needs_gpu:
            return ()
        names = self.module.ComputeCapability.__members__
        return tuple(sorted((name[2:] for name in names if name.startswith("SM")), key=int))


def error_logger(module: Any) -> Any:
    """A logger for a TensorRT module that prints nothing and keeps errors, in order, in its list `messages`."""

    class ErrorLogger(module.ILogger):  # type: ignore[misc]
        """Keeps error messages."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)  # pybind11 refuses a class whose own constructor was not called
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            """Keep an error; lower severities are passed over."""
            if severity.value <= module.ILogger.ERROR.value:
                self.messages.append(message)

    return ErrorLogger()


def load_library(name: LibraryName) -> Library:
    """Import a TensorRT.

    Raises: MissingExtraError: it is not installed. ProviderError: it is, and does not load.
    """
    try:
        module = importlib.import_module(MODULES[name])
    except ModuleNotFoundError as error:
        raise MissingExtraError(name, extra=name) from error
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ProviderError(f"{name} does not load: {reason}", hint=f"pip install 'mechm[{name}]'") from error
    return Library(name, module, str(module.__version__))


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first NVIDIA GPU.

    compute_capability: as in `86`. memory_bytes: in all, whoever uses it.
    """

    name: str
    compute_capability: str
    memory_bytes: int


def load_cuda(extra: LibraryName) -> Any:
    """CUDA's runtime interface: `cuda.bindings.runtime`.

    extra: which one brings it. Raises: MissingExtraError.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise MissingExtraError("cuda-bindings", extra=extra) from error


def checked(cuda: Any, answer: tuple[Any, ...]) -> Any:
    """The values that a call to CUDA's runtime returned beside its status.

    Raises: ProviderError: the call failed.
    """
    status, *values = answer
    if status != cuda.cudaError_t.cudaSuccess:
        _, text = cuda.cudaGetErrorString(status)
        raise ProviderError(f"CUDA: {text.decode()}", hint="mechm doctor; nvidia-smi tells the driver's version")
    return values[0] if len(values) == 1 else tuple(values) or None


def visible_gpu(extra: LibraryName) -> Gpu:
    """The GPU that engines would run on.

    Raises: ProviderError: there is none, or its driver is too old; the message has CUDA's reason. MissingExtraError.
    """
    cuda = load_cuda(extra)
    needs = f"{extra} needs an NVIDIA GPU"
    if checked(cuda, cuda.cudaDriverGetVersion()) == 0:
        raise ProviderError(f"{needs}, and there is no NVIDIA driver here", hint="mechm doctor tells what works here")
    try:
        count = checked(cuda, cuda.cudaGetDeviceCount())
    except ProviderError as error:
        raise ProviderError(f"{needs}, and none can be used: {error}", hint=error.hint) from error
    if count == 0:
        raise ProviderError(f"{needs}, and there is none", hint="nvidia-smi lists those there are")
    properties = checked(cuda, cuda.cudaGetDeviceProperties(0))
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return Gpu(name, f"{properties.major}{properties.minor}", int(properties.totalGlobalMem))


def system_name() -> str:
    """Operating system and processor, as in `linux-x86_64`: engines of one do not load on another."""
    machine = platform.machine().lower()
    return f"{platform.system().lower()}-{'x86_64' if machine == 'amd64' else machine}"
