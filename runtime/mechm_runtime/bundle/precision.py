"""Names of the precisions that a part of a bundle may have, beside `fp32` and `int8`."""

from __future__ import annotations

PORTABLE_INT8 = "w8"
"""int8 in plain ONNX, for engines other than onnxruntime. It names two schemes: weights alone, with a scale per
channel, where the engine chooses how to compute (text encoder, Llama), and static int8, where the graph gives the
scales of the activations too (audio and picture encoders)."""
HALF: tuple[str, ...] = ("fp16", "bf16")
"""Precisions of graphs for GPUs, the preferred one first; a part has one of them at most."""
