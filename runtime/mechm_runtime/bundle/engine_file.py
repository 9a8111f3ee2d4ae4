"""TensorRT engines in a bundle: the file, and the key of everything that its bytes were built from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

EnginePrecision = Literal["fp32", "fp16", "bf16", "int8"]


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Shapes of one input that an engine takes: the smallest, the one it is optimised for, and the largest."""

    tensor: str
    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.smallest) == len(self.usual) == len(self.largest):
            raise ValueError(f"shapes of {self.tensor} have several lengths")
        if any(not 0 <= a <= b <= c for a, b, c in zip(self.smallest, self.usual, self.largest, strict=True)):
            raise ValueError(f"shapes of {self.tensor} are not in order")

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Whether an input of this shape can be run."""
        return len(shape) == len(self.smallest) and all(
            low <= size <= high for low, size, high in zip(self.smallest, shape, self.largest, strict=True)
        )


@dataclass(frozen=True, slots=True)
class EngineKey:
    """Everything that an engine's bytes are built from; where any of it changes, the engine is built again.

    library, version: the TensorRT that built it; no other loads it.
    compute_capabilities: of the GPUs it is for, as in `86`. system: as in `linux-x86_64`.
    shapes: the optimisation profile. onnx_sha256: of the graph, whose weights are inside it.
    """

    library: str
    version: str
    compute_capabilities: tuple[str, ...]
    system: str
    precision: str
    shapes: tuple[ShapeRange, ...]
    onnx_sha256: str

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that differ where anything differs."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class EngineFile:
    """An engine in a bundle.

    file, source: paths inside the bundle, of the engine and of the ONNX it was built from.
    memory_bytes: estimate for the GPU: weights, and activations of the largest shapes.
    """

    part: str
    file: str
    source: str
    memory_bytes: int
    key: EngineKey
