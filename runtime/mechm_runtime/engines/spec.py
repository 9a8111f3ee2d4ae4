"""The table of inference engines: a name and a row per engine. It is data; importing it imports no engine.

To add an engine, add its name to `EngineName`, a row to `ENGINES`, and a module with the row's `loader`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mechm_runtime.bundle.precision import PORTABLE_INT8

if TYPE_CHECKING:
    from mechm_runtime.bundle.manifest import PartFiles

EngineName = Literal["onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "coreml"]

DEFAULT_ENGINE: EngineName = "onnxruntime"
GPU_ENGINE: Literal["onnxruntime-gpu"] = "onnxruntime-gpu"

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

FOR_CPUS: Mapping[str, str] = {
    precision: f"the {precision} files are for CPUs" for precision in ("int8", PORTABLE_INT8)
}


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """An inference engine.

    loader: `module:callable` below `mechm_runtime.engines`, imported when the first graph is loaded. It takes the path
        of an ONNX file and an `EngineConfig`; where `is_built`, a bundle, a part's name and the engine's name. It
        returns a `GraphRunner`.
    extra: of mechm, which brings the engine's packages.
    summary: for the help text of `--engine`.
    preferred: precisions in the order in which one is chosen where none is asked for; empty for the bundle's choice.
    refused: precision -> the reason why the engine does not run it.
    provider: execution provider of onnxruntime that runs the graphs where onnxruntime does.
    takes_provider: whether `EngineConfig.provider` names another one.
    is_built: whether it runs what `mechm export engines` has put into a bundle, and no ONNX file.
    runs_beside_vllm: whether vLLM may run in the same process; False where that was never tried.
    """

    loader: str
    extra: str
    summary: str
    preferred: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    provider: str = CPU
    takes_provider: bool = False
    is_built: bool = False
    runs_beside_vllm: bool = True

    def default_precision(self, part: PartFiles) -> str:
        """The precision of a part that the engine runs where none is asked for; the part may lack a file of it."""
        if not self.preferred:
            return part.default
        return next((precision for precision in self.preferred if precision in part.files), "fp32")


ENGINES: Mapping[EngineName, EngineSpec] = {
    "onnxruntime": EngineSpec(
        loader="onnxruntime_engine:OnnxRuntimeEngine",
        extra="cpu",
        summary="CPU",
        takes_provider=True,
    ),
    "onnxruntime-gpu": EngineSpec(
        loader="onnxruntime_cuda:CudaEngine",
        extra="gpu",
        summary="NVIDIA GPU, 16 bits if the bundle was exported with --engine onnxruntime-gpu, else fp32",
        preferred=("fp16", "bf16", "fp32"),
        refused=FOR_CPUS,
        provider=CUDA,
    ),
    "openvino": EngineSpec(
        loader="openvino_engine:OpenVinoEngine",
        extra="openvino",
        summary="Intel CPU, for bundles exported with --engine openvino (closer to fp32 than onnxruntime in int8), "
        "others run in fp32",
        preferred=(PORTABLE_INT8, "fp32"),
        refused={"int8": "the int8 files are onnxruntime's own"},
        runs_beside_vllm=False,
    ),
    "tensorrt": EngineSpec(
        loader="tensorrt.engine:load_part",
        extra="tensorrt",
        summary="NVIDIA GPU, with the engines that mechm export engines has added to the bundle",
        is_built=True,
    ),
    "tensorrt-rtx": EngineSpec(
        loader="tensorrt.engine:load_part",
        extra="tensorrt-rtx",
        summary="as tensorrt, with engines for GeForce and RTX GPUs",
        is_built=True,
    ),
    "coreml": EngineSpec(
        loader="coreml_engine:CoreMlEngine",
        extra="coreml",
        summary="macOS, on the GPU or the Neural Engine where Core ML knows the operators",
        preferred=("fp32", "fp16"),
        refused={**FOR_CPUS, "bf16": "Core ML computes no bf16"},
        provider="CoreMLExecutionProvider",
        runs_beside_vllm=False,
    ),
}
