"""Reads the LoRA pairs of a checkpoint, by the Llama's modules that they adapt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mechm.llm.blockwise import UnmergedLora
from mechm.minigpt.checkpoint import check_finite, check_names, length, listed
from mechm.minigpt.keys import LORA, LORA_TARGETS
from mechm_runtime.errors import InputError, WeightsError

DEFAULT_ALPHA = 16.0
"""MiniGPT-v2's `lora_alpha`."""


@dataclass(frozen=True, slots=True)
class LoraPairs:
    """LoRA pairs; alpha / rank * B A x is added to a module's output.

    pairs: module -> A (rank, in) and B (out, rank), float32.
    """

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        """Factor of the product."""
        return self.alpha / self.rank

    def unmerged(self) -> Mapping[str, UnmergedLora]:
        """Return the pairs for running a Llama with them unmerged."""
        return {module: UnmergedLora(a, b, self.scale) for module, (a, b) in self.pairs.items()}

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """Merge a weight of the Llama with its pair, in float32; unchanged where it has none."""
        pair = self.pairs.get(name.removesuffix(".weight"))
        return weight if pair is None else weight + self.scale * (pair[1] @ pair[0])


def read_lora(
    path: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], n_layers: int, alpha: float
) -> LoraPairs:
    """Read the pairs among a checkpoint's tensors.

    shapes: of the Llama's weights, by name. n_layers: number of its blocks.
    Raises: WeightsError: a pair is missing or unexpected, is not finite, or does not fit the Llama.
    """
    sides: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if found := re.match(LORA, name):
            side = f"{found['module']}.lora_{found['side']}"
            if side in sides:
                raise WeightsError(f"{path} has two adapters: {side} is there twice")
            sides[side] = tensor
    modules = [f"model.layers.{number}.{target}" for number in range(n_layers) for target in LORA_TARGETS]
    check_names(path, sides, [f"{module}.lora_{side}" for module in modules for side in "AB"])
    rank = length(sides[f"{modules[0]}.lora_A"], 0)
    wrong = []
    for module in modules:
        a, b = (sides[f"{module}.lora_{side}"] for side in "AB")
        out_size, in_size = shapes[f"{module}.weight"]
        if not rank or a.shape != (rank, in_size) or b.shape != (out_size, rank):
            wrong.append(f"{module}: A {tuple(a.shape)}, B {tuple(b.shape)} for {out_size} x {in_size} at rank {rank}")
    if wrong:
        raise WeightsError(f"{path}: LoRA does not fit the Llama, {len(wrong)} pairs: {listed(wrong, '; ')}")
    whole = {name: check_finite(path, name, tensor.float()) for name, tensor in sides.items()}
    return LoraPairs({one: (whole[f"{one}.lora_A"], whole[f"{one}.lora_B"]) for one in modules}, rank, alpha)


def lora_alpha(config: Any, given: float | None) -> float:
    """Determine the alpha that a checkpoint was trained with.

    config: the checkpoint's record of its training, if any. given: the caller's value.
    Raises: InputError: they differ.
    """
    model = config.get("model") if isinstance(config, dict) else None
    recorded = model.get("lora_alpha") if isinstance(model, dict) else None
    if not isinstance(recorded, int | float) or recorded <= 0:
        return DEFAULT_ALPHA if given is None else given
    if given is not None and given != recorded:
        raise InputError(
            f"--lora-alpha {given:g}, but the checkpoint was trained with {recorded:g}", hint="leave --lora-alpha out"
        )
    return float(recorded)
