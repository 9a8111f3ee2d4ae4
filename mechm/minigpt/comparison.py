"""Compares imported weights with the Llama and its unmerged LoRA, over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mechm.llm.blockwise import log_probabilities
from mechm.llm.merge import MAX_KL, DType
from mechm.llm.stored_base import StoredBase, read_base
from mechm.minigpt.lora import LoraPairs
from mechm.minigpt.prompt import PromptReader
from mechm_runtime.errors import VerificationError
from mechm_runtime.system.progress import Progress

CHECK_TEXTS = (
    "[emotion] Ana: I got the job! Ben: No way, congratulations!",
    "[emotion] Joey: You left me standing in the rain for two hours. What is the emotion of Joey?",
    "Which utterance caused the fear of Carla in: Dan: The dog is loose again. Carla: Close the door, quick!",
)
"""Prompts for comparing answers, without a picture, since image tokens pass through the same weights as text."""

TOLERANCE = 1e-2
"""Largest difference of log-probabilities, in nats, between merged and unmerged fp32 weights. Larger than for the
answers' few tokens (`mechm.llm.merge`), since it is the maximum over the whole vocabulary after every token."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of answers from those of the unmerged fp32 weights.

    largest: of log-probabilities, over the whole vocabulary after every token, in nats. mean_kl: per token, in nats.
    n_changed: number of the `n_tokens` tokens after which another token is the most likely one.
    """

    largest: float
    mean_kl: float
    n_tokens: int
    n_changed: int


def reader(base: StoredBase) -> Callable[[str], Tensor]:
    """Return a function that reads a weight in float32 by its name."""

    def read(name: str) -> Tensor:
        with safe_open(base.tensors[name].file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor.float()

    return read


def compare(
    base: StoredBase,
    config: Any,
    lora: LoraPairs,
    prompts: PromptReader,
    written: Path,
    dtype: DType,
    report: Progress,
) -> tuple[Difference, Difference]:
    """Compare the merged fp32 weights, and the written files, with the Llama and its unmerged LoRA.

    Raises: VerificationError: a difference is too large.
    """
    asked = [prompts.without_picture(text) for text in CHECK_TEXTS]
    read = reader(base)

    def answers(what: str, tensor: Callable[[str], Tensor], **options: Any) -> list[Tensor]:
        return log_probabilities(
            config, tensor, asked, on_block=lambda done, n: report(f"asking {what}", done, n), **options
        )

    reference = answers("with the LoRA beside", read, lora=lora.unmerged())
    merged = difference(reference, answers("the sum", lambda name: lora.merged(name, read(name))))
    if not merged.largest <= TOLERANCE:
        raise VerificationError(
            f"merged and unmerged answer differently: {describe(merged)}", hint="nothing was written; report this"
        )
    rounded = difference(reference, answers("what was written", reader(read_base(written))))
    if not rounded.mean_kl <= MAX_KL:
        raise VerificationError(
            f"in {dtype} the merged model answers differently: {describe(rounded)}",
            hint="nothing was written; choose --dtype fp32" if dtype != "fp32" else "nothing was written",
        )
    return merged, rounded


def difference(reference: list[Tensor], other: list[Tensor]) -> Difference:
    """Compare the predictions after every token of every prompt; NaN counts as an infinite difference.

    reference, other: float32 (tokens, vocabulary) for each prompt.
    """
    one, two = torch.cat(reference).double(), torch.cat(other).double()
    distance = (one - two).abs().nan_to_num(nan=torch.inf)
    kl = (one.exp() * (one - two)).sum(-1).mean().nan_to_num(nan=torch.inf)
    n_changed = int((one.argmax(-1) != two.argmax(-1)).sum())
    return Difference(float(distance.max()), max(float(kl), 0.0), len(one), n_changed)


def describe(found: Difference) -> str:
    """Format a difference as one line."""
    return (
        f"largest log-probability difference {found.largest:.1e}, KL {found.mean_kl:.1e}, "
        f"{found.n_changed} of {found.n_tokens} most likely tokens changed"
    )
