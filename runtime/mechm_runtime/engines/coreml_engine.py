"""The engine `coreml`: onnxruntime on Apple's Core ML, which runs graphs on the GPU or the Neural Engine of a Mac.

Core ML takes the operators that it knows, and onnxruntime computes the others on the CPU. Written against onnxruntime's
documented options of the provider and not run on a Mac yet; elsewhere it is refused.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.errors import ProviderError


class CoreMlEngine(OnnxRuntimeEngine):
    """A graph loaded by onnxruntime on Core ML.

    Raises: as `OnnxRuntimeEngine`. ProviderError: also on any system but macOS.
    """

    # An ML program (Core ML 5, macOS 12) has typed tensors and computes fp32 in fp32. The older format, the provider's
    # default, computes all of it in fp16.
    provider_options: ClassVar = {"ModelFormat": "MLProgram"}

    def __init__(self, path: Path, config: EngineConfig) -> None:
        system = sys.platform  # as a variable: a type checker on another system would skip what follows
        if system != "darwin":
            raise ProviderError(
                f"Core ML is a part of macOS, and this is {system}",
                hint="leave --engine out: onnxruntime runs here",
            )
        super().__init__(path, config)
