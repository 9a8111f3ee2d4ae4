"""One training in one process or many, through Hugging Face accelerate: `torchrun` or `accelerate launch` starts them.

Gradients are summed here and not by `DistributedDataParallel`: a batch without annotated causes leaves the pair head
without a gradient, the last step of an epoch may have fewer batches than processes, and recomputed activations run
backward twice, none of which its hooks like. What travels is small: the adapter or the fusion, never a frozen base.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object
from torch import Tensor, nn

from mechm.training.checkpoint import differences
from mechm_runtime.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others: one of them may be scoring and writing at an epoch's end."""


def start_processes() -> Accelerator:
    """Join the training's processes, and say which device is this one's; products are bfloat16.

    Calling it again in a process is cheap and gives the same group.
    Raises: InputError: the launcher started more processes than found each other.
    """
    # Without `cpu`, accelerate takes every process of a machine without accelerator for a training of its own.
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision="bf16",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise InputError(
            f"{started} processes were started, and {accelerator.num_processes} of them train together",
            hint=f"{accelerator.device.type} takes one process: leave the launcher out",
        )
    return accelerator


def check_agreement(accelerator: Accelerator, identity: Mapping[str, Any]) -> None:
    """Raises: InputError: what this process trains, or on what, differs from the main process's `identity`."""
    if accelerator.num_processes == 1:
        return
    if differ := differences(gather_object([identity])[0], identity, "here it"):
        raise InputError(
            f"process {accelerator.process_index} differs from the main one: {'; '.join(differ)}",
            hint="give every process the same command, data and base weights",
        )


def sum_gradients(accelerator: Accelerator, parameters: Sequence[nn.Parameter], values: Tensor) -> Tensor:
    """Sum every parameter's gradient over the processes, in place, and return the sum of `values`, float32 (N,).

    A parameter that has a gradient in no process keeps none, so that the optimizer leaves it alone as it does in a
    training of one process.
    """
    if accelerator.num_processes == 1:
        return values
    has = torch.tensor([float(p.grad is not None) for p in parameters], device=values.device)
    gradients = [(torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in parameters]
    summed: Tensor = accelerator.reduce(torch.cat([*gradients, has, values]), "sum")
    sizes = [p.numel() for p in parameters]
    *parts, has, values = torch.split(summed, [*sizes, len(parameters), len(values)])
    for parameter, part, n in zip(parameters, parts, has.tolist(), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype) if n else None
    return values


def in_parts(
    accelerator: Accelerator, items: Sequence[Item], work: Callable[[Sequence[Item]], list[Result]]
) -> list[Result]:
    """`work(items)`, every process doing its share and each getting the whole, in order."""
    n = accelerator.num_processes
    if n == 1:
        return work(items)
    parts: list[list[Result]] = gather_object([work(items[accelerator.process_index :: n])])
    return [parts[index % n][index // n] for index in range(len(items))]
