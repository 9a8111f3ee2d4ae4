"""Load a graph file on the engine that a configuration names."""

from __future__ import annotations

from pathlib import Path

from mechm_runtime.bundle.precision import GPU_ENGINE
from mechm_runtime.engines.base import EngineConfig, GraphRunner
from mechm_runtime.engines.onnxruntime_engine import Engine


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
