"""A part of a bundle on an NVIDIA GPU: its engine is taken from the bundle, or built again where it is of elsewhere.

An engine loads only with the TensorRT that built it, on the GPUs it was built for. Where this machine has others, it is
built from the ONNX that the bundle carries beside it, and kept in the user's cache folder. TensorRT-RTX compiles
kernels when an engine first runs; those are kept there too. Written against TensorRT's documented interface,
and checked without a GPU as far as that goes: engines were built and refused, none was run.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mechm_runtime.bundle.engine_file import EngineFile, ShapeRange
from mechm_runtime.bundle.manifest import Bundle
from mechm_runtime.engines.tensorrt.build import build_into
from mechm_runtime.engines.tensorrt.engine_store import EngineStore
from mechm_runtime.engines.tensorrt.library import (
    Gpu,
    Library,
    LibraryName,
    checked,
    error_logger,
    load_cuda,
    load_library,
    system_name,
    visible_gpu,
)
from mechm_runtime.errors import BundleError, InputError, ProviderError
from mechm_runtime.system.arrays import Array, Arrays
from mechm_runtime.system.atomic_write import write_atomically

MEMORY_SHARE = 0.9
"""Of a GPU's memory that may be planned with: CUDA's own context and the desktop take the rest."""


def load_part(bundle: Bundle, part: str, name: LibraryName) -> TensorRtEngine:
    """A part's engine on the GPU of this machine, built first where the bundle's was built for another.

    Raises: BundleError: the bundle has no engine of that part. MissingExtraError: the library is not installed.
        ProviderError: no GPU, too little memory on it, or the library refuses.
    """
    found = find_engine(bundle, part, name)
    library = load_library(name)
    gpu = visible_gpu(name)
    check_memory(found, gpu)
    store = EngineStore()
    path = engine_for(library, bundle, found, gpu.compute_capability, store)
    kernels = store.folder / f"{found.key.digest}-sm{gpu.compute_capability}.kernels"
    return TensorRtEngine(path, library, found.key.shapes, kernels)


def find_engine(bundle: Bundle, part: str, name: LibraryName) -> EngineFile:
    """The bundle's engine of a part for a library, for whatever machine.

    Raises: BundleError: there is none.
    """
    for engine in bundle.engines:
        if engine.part == part and engine.key.library == name:
            return engine
    raise BundleError(
        f"the bundle has no {name} engine of its {part} part",
        hint=f"with mechm[export]: mechm export engines --bundle {bundle.folder} --engine {name} --part {part}",
    )


def engine_for(
    library: Library, bundle: Bundle, engine: EngineFile, compute_capability: str, store: EngineStore
) -> Path:
    """The file of an engine that loads on a GPU: the bundle's own, or one built from the same ONNX.

    Raises: ProviderError: the library cannot build for that GPU.
    """
    capabilities = engine.key.compute_capabilities
    here = replace(
        engine.key,
        version=library.version,
        compute_capabilities=capabilities if compute_capability in capabilities else (compute_capability,),
        system=system_name(),
    )
    if here == engine.key:
        return bundle.path(engine.file)
    if not library.needs_gpu and compute_capability not in library.compute_capabilities:
        raise ProviderError(
            f"{library.name} builds for the compute capabilities {', '.join(library.compute_capabilities)}, "
            f"and this GPU has {compute_capability}",
            hint="use the other library: --engine tensorrt",
        )
    kept = store.find(here)
    if kept is not None:
        return kept
    return build_into(store, library.name, bundle.path(engine.source), here)


def check_memory(engine: EngineFile, gpu: Gpu) -> None:
    """Refuse a GPU that is too small before anything is loaded.

    Raises: ProviderError.
    """
    if engine.memory_bytes > MEMORY_SHARE * gpu.memory_bytes:
        raise ProviderError(
            f"the {engine.part} engine takes about {engine.memory_bytes / 2**30:.1f} GiB, "
            f"and {gpu.name} has {gpu.memory_bytes / 2**30:.1f}",
            hint=f"a larger GPU; or, with mechm[export]: mechm export engines --part {engine.part} --precision fp16 or "
            "int8",
        )


class TensorRtEngine:
    """A loaded engine. `run` may be called from several threads at once; they take turns.

    path: the engine's file. shapes: what it takes of each input. kernels: where TensorRT-RTX's compiled kernels are
    kept.
    Raises: ProviderError: no GPU, or the engine does not load there. MissingExtraError: no CUDA bindings.
    """

    def __init__(self, path: Path, library: Library, shapes: tuple[ShapeRange, ...], kernels: Path) -> None:
        self._cuda = load_cuda(library.name)
        self._trt = library.module
        self._logger = error_logger(self._trt)
        self._runtime = self._trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:  # TensorRT raises nothing
            reason = (self._logger.messages or ["it gives no reason"])[0].replace("\n", " ")[:300]
            raise ProviderError(
                f"{library.name} {library.version} does not load {path.name}: {reason}",
                hint="mechm doctor tells what works here; with mechm[export], mechm export engines builds it again",
            )
        self._shapes = {shape.tensor: shape for shape in shapes}
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self.input_names = tuple(name for name in names if modes[name] == self._trt.TensorIOMode.INPUT)
        self.output_names = tuple(name for name in names if modes[name] == self._trt.TensorIOMode.OUTPUT)
        self._dtypes = {name: np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name))) for name in names}
        self._kernels = None if library.needs_gpu else _KernelCache(self._engine, kernels)
        if self._kernels is None:
            self._context = self._engine.create_execution_context()
        else:
            self._context = self._engine.create_execution_context(self._kernels.config)
        if self._context is None:
            raise ProviderError(f"{library.name} has no room for {path.name}: {'; '.join(self._logger.messages)[:300]}")
        self._stream = checked(self._cuda, self._cuda.cudaStreamCreate())
        self._buffers: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Run the graph: arrays by input name to arrays by output name.

        A graph keeps only inputs that it uses; others are passed over.
        Raises: InputError: an input is larger or smaller than the engine was built for. ProviderError: the GPU failed.
        """
        feeds = {name: np.ascontiguousarray(inputs[name], self._dtypes[name]) for name in self.input_names}
        for name, array in feeds.items():
            check_shape(name, array.shape, self._shapes)
        with self._lock:
            return self._run(feeds)

    def _run(self, feeds: Arrays) -> dict[str, Array]:
        cuda, context = self._cuda, self._context
        kinds = cuda.cudaMemcpyKind
        for name, array in feeds.items():
            if not context.set_input_shape(name, array.shape):
                raise InputError(f"the engine does not take {name} of shape {array.shape}")
            address = self._bind(name, array.nbytes)
            copied = cuda.cudaMemcpyAsync(
                address, array.ctypes.data, array.nbytes, kinds.cudaMemcpyHostToDevice, self._stream
            )
            checked(cuda, copied)
        outputs = {}
        for name in self.output_names:
            outputs[name] = np.empty(tuple(context.get_tensor_shape(name)), self._dtypes[name])
            self._bind(name, outputs[name].nbytes)
        if not context.execute_async_v3(int(self._stream)):
            raise ProviderError(f"the GPU did not run: {'; '.join(self._logger.messages)[-300:]}")
        for name, array in outputs.items():
            copied = cuda.cudaMemcpyAsync(
                array.ctypes.data, self._buffers[name][0], array.nbytes, kinds.cudaMemcpyDeviceToHost, self._stream
            )
            checked(cuda, copied)
        checked(cuda, cuda.cudaStreamSynchronize(self._stream))
        if self._kernels is not None:
            self._kernels.save()
        return outputs

    def _bind(self, name: str, n_bytes: int) -> int:
        """Device memory of a tensor, at least so large, which the next run reads or writes."""
        address, size = self._buffers.get(name, (0, -1))
        if n_bytes > size:
            if address:
                checked(self._cuda, self._cuda.cudaFree(address))
            address = int(checked(self._cuda, self._cuda.cudaMalloc(max(n_bytes, 1))))
            self._buffers[name] = address, n_bytes
            self._context.set_tensor_address(name, address)
        return address


def check_shape(name: str, shape: tuple[int, ...], shapes: Mapping[str, ShapeRange]) -> None:
    """Raises: InputError: an input is outside of what the engine was built for."""
    built = shapes[name]
    if not built.holds(shape):
        raise InputError(
            f"the engine takes {name} from {built.smallest} to {built.largest}, not {shape}",
            hint="run longer inputs on onnxruntime",
        )


class _KernelCache:
    """TensorRT-RTX's compiled kernels, in a file that the next process reads.

    Those of another version, GPU or driver are refused by the library, and compiled again.
    """

    def __init__(self, engine: Any, path: Path) -> None:
        self._path = path
        self.config = engine.create_runtime_config()
        self._cache = self.config.create_runtime_cache()
        self._saved = False
        with contextlib.suppress(FileNotFoundError):
            self._saved = bool(self._cache.deserialize(path.read_bytes()))
        self.config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write what was compiled, once a process; a full disk costs the next start some seconds, and nothing else."""
        if not self._saved:
            self._saved = True
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self._path, bytes(self._cache.serialize()))
