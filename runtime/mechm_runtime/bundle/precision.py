"""Names of inference engines and of the precisions that a part of a bundle may have."""

from __future__ import annotations

from typing import Literal, get_args

EngineName = Literal["onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx"]
ENGINE_NAMES: tuple[EngineName, ...] = get_args(EngineName)
W8 = "w8"
"""A precision beside fp32 and int8: int8 weights with a scale a channel, in plain ONNX. Where the graph says no scales
of the activations, how it is computed is the engine's choice."""
HALF: tuple[str, ...] = ("fp16", "bf16")
"""Precisions of graphs for GPUs, the one that is preferred first; a part has one of them at most."""

GpuEngine = Literal["onnxruntime-gpu"]
GPU_ENGINE: GpuEngine = "onnxruntime-gpu"
