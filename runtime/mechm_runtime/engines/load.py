"""Load a graph file on the engine that a configuration names."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from mechm_runtime.bundle.manifest import Bundle
from mechm_runtime.engines.base import EngineConfig, GraphRunner
from mechm_runtime.engines.spec import EngineSpec


def load_engine(path: Path, config: EngineConfig) -> GraphRunner:
    """Load an ONNX file on the config's engine.

    Raises: MissingExtraError, ProviderError, BundleError. ValueError: an engine that runs no ONNX file, but what was
        built from a bundle (`load_built_engine`).
    """
    if config.spec.is_built:
        raise ValueError(f"{config.engine} runs no ONNX file")
    runner: GraphRunner = find_loader(config.spec)(path, config)
    return runner


def load_built_engine(bundle: Bundle, part: str, config: EngineConfig) -> GraphRunner:
    """Load what was built of a part for the config's engine.

    Raises: MissingExtraError, ProviderError, BundleError.
    """
    runner: GraphRunner = find_loader(config.spec)(bundle, part, config.engine)
    return runner


def find_loader(spec: EngineSpec) -> Any:
    """Import an engine's module and return the callable that its row in the table names."""
    module, _, name = spec.loader.partition(":")
    return getattr(import_module(f"mechm_runtime.engines.{module}"), name)
