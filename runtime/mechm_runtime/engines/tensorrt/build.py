"""Build an engine from an ONNX file: parse it, give it its shapes, and let TensorRT compile it.

Networks are strongly typed, which is all that TensorRT-RTX knows: precision is what the ONNX says. TF32 is off, so that
fp32 means fp32. TensorRT measures kernels while it builds and keeps the timings in a cache file; TensorRT-RTX measures
nothing then, and compiles kernels when an engine first runs (`engine` keeps those).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mechm_runtime.bundle.engine_file import EngineKey, ShapeRange
from mechm_runtime.engines.tensorrt.engine_store import EngineStore
from mechm_runtime.engines.tensorrt.library import Library, LibraryName, error_logger, load_library
from mechm_runtime.errors import ProviderError
from mechm_runtime.system.atomic_write import write_atomically


def build_engine(library: Library, source: Path, key: EngineKey, timings: Path | None = None) -> bytes:
    """The serialized engine of an ONNX file.

    key: for what it is built: compute capabilities and shapes are taken from it.
    timings: file of kernel timings, read where it exists and written afterwards; only `tensorrt` has any.
    Raises: ProviderError: the library refuses the graph, the shapes or the compute capability; with its own reason.
    """
    trt = library.module
    logger = error_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(source)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = [f"{error.desc()} (at {error.node_operator()} {error.node_name()})" for error in errors]
        raise _refusal(library, source, reasons or logger.messages)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    _set_shapes(builder, network, config, key.shapes, library, source)
    if not library.needs_gpu:
        config.num_compute_capabilities = len(key.compute_capabilities)
        for index, capability in enumerate(key.compute_capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), index)
    cache = _timing_cache(config, timings) if library.needs_gpu and timings is not None else None
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise _refusal(library, source, logger.messages)
    if cache is not None and timings is not None:
        timings.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(timings, bytes(cache.serialize()))
    return bytes(built)


def build_into(store: EngineStore, name: LibraryName, source: Path, key: EngineKey) -> Path:
    """Build an engine and keep it in a store; kernel timings are kept in the user's cache folder.

    Raises: as `build_engine`; MissingExtraError.
    """
    timings = EngineStore().folder / f"{name}-{key.version}-sm{'-'.join(key.compute_capabilities)}.timings"
    return store.keep(key, build_engine(load_library(name), source, key, timings))


def _set_shapes(
    builder: Any, network: Any, config: Any, shapes: Sequence[ShapeRange], library: Library, source: Path
) -> None:
    profile = builder.create_optimization_profile()
    ranges = {shape.tensor: shape for shape in shapes}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.name not in ranges:
            raise _refusal(library, source, [f"no shapes are given for its input {tensor.name}"])
        given = ranges[tensor.name]
        fixed = tuple(tensor.shape)
        if len(fixed) != len(given.usual) or any(
            size not in (-1, low) or (size != -1 and low != high)
            for size, low, high in zip(fixed, given.smallest, given.largest, strict=True)
        ):
            raise _refusal(library, source, [f"its input {tensor.name} is {fixed}, not {given.smallest} and up"])
        profile.set_shape(tensor.name, given.smallest, given.usual, given.largest)
    if config.add_optimization_profile(profile) < 0:
        raise _refusal(library, source, ["its shapes make no optimisation profile"])


def _timing_cache(config: Any, timings: Path) -> Any:
    known = b""
    with contextlib.suppress(FileNotFoundError):
        known = timings.read_bytes()
    cache = config.create_timing_cache(known)
    # Timings of another version or GPU are refused by the library; it measures again then.
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _refusal(library: Library, source: Path, reasons: Sequence[str]) -> ProviderError:
    reason = (reasons[-1] if reasons else "it gives no reason").replace("\n", " ")[:300]
    return ProviderError(f"{library.name} {library.version} cannot build {source.name}: {reason}")
