"""Names of the precisions that a part of a bundle may have, beside `fp32` and `int8`."""

from __future__ import annotations

W8 = "w8"
"""int8 weights with a scale per channel, in plain ONNX. Where the graph gives no scales of the activations, the engine
chooses how to compute it."""
HALF: tuple[str, ...] = ("fp16", "bf16")
"""Precisions of graphs for GPUs, the preferred one first; a part has one of them at most."""
