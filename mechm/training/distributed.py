"""Training in one or more processes with Hugging Face accelerate, started by `torchrun` or `accelerate launch`.

Gradients are summed here rather than by `DistributedDataParallel`, whose hooks do not support a pair head without
gradient (batches without annotated causes), fewer batches than processes (an epoch's last step) or activation
checkpointing. Only the gradients of trained weights are exchanged, which are small: the adapter's or the fusion's.
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

PROCESS_TIMEOUT = timedelta(hours=2)
"""Longest wait for the other processes, one of which may be scoring and writing at an epoch's end."""


def start_processes() -> Accelerator:
    """Join the training's processes; matrix products are computed in bfloat16.

    Calling it again in a process is cheap and returns the same group.
    Raises: InputError: the launcher started more processes than joined.
    """
    # Without `cpu`, accelerate treats every process as a training of its own on machines without accelerator.
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision="bf16",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PROCESS_TIMEOUT)],
    )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise InputError(
            f"{started} processes were started, and {accelerator.num_processes} of them train together",
            hint=f"{accelerator.device.type} supports one process: leave the launcher out",
        )
    return accelerator


def check_agreement(accelerator: Accelerator, identity: Mapping[str, Any]) -> None:
    """Raises: InputError: this process's `identity` (model, config, data) differs from the main process's."""
    if accelerator.num_processes == 1:
        return
    if differ := differences(gather_object([identity])[0], identity, "here it"):
        raise InputError(
            f"process {accelerator.process_index} differs from the main one: {'; '.join(differ)}",
            hint="give every process the same command, data and base weights",
        )


def sum_gradients(accelerator: Accelerator, parameters: Sequence[nn.Parameter], values: Tensor) -> Tensor:
    """Sum every parameter's gradient over the processes, in place, and return the sum of `values`, float32 (N,).

    A parameter without a gradient in any process keeps none, so that the optimizer skips it, as in one process.
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


def map_over_processes(
    accelerator: Accelerator, items: Sequence[Item], work: Callable[[Sequence[Item]], list[Result]]
) -> list[Result]:
    """Compute `work(items)`: every process does its share, and all get the whole result, in order."""
    n = accelerator.num_processes
    if n == 1:
        return work(items)
    parts: list[list[Result]] = gather_object([work(items[accelerator.process_index :: n])])
    return [parts[index % n][index // n] for index in range(len(items))]
