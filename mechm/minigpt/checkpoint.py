"""Reads tensors from a torch file, memory-mapped and without executing code in it, and checks names and shapes.

All missing, unexpected or misshapen tensors are named in one error.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechm.minigpt.keys import Key
from mechm_runtime.errors import WeightsError

MAX_NAMES = 12
"""Most names that an error lists."""


def read_torch_file(path: Path) -> dict[str, Any]:
    """Read a dictionary written by `torch.save`; tensors stay on disk until they are used.

    Raises: WeightsError: it cannot be read, is truncated, or contains objects that need code to be rebuilt.
    """
    try:
        # Files from before torch 1.6 are not zip archives and cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise WeightsError(
            f"{path} holds more than tensors{what}: to read it would run code that is in it",
            hint='load it where you trust it, and save its tensors alone: torch.save({"model": state_dict}, path)',
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{path} is not a whole torch file: {reason}", hint="fetch it again") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not tensors by name")
    return content


def tensors_in(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a file, or of its entry `model`, by name.

    Raises: WeightsError: an entry is not a dense tensor of floats.
    """
    state = content.get("model", content)
    if not isinstance(state, dict) or not state:
        raise WeightsError(f"{path} has no tensors by name")
    for name, value in state.items():
        what = f"{value.dtype}, {value.layout}" if isinstance(value, Tensor) else type(value).__name__
        # A sparse tensor could expand to more than any memory holds.
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout != torch.strided:
            raise WeightsError(f"{path}: {str(name)[:80]} is {what}, not a dense tensor of floats")
    return dict(state)


def check_names(path: Path, found: Collection[str], wanted: Collection[str], unused: Sequence[str] = ()) -> None:
    """Raises: WeightsError: names are missing, or unexpected and match no pattern of `unused`."""
    missing = sorted(set(wanted) - set(found), key=_natural)
    extra = {name for name in set(found) - set(wanted) if not any(re.match(pattern, name) for pattern in unused)}
    problems = [
        f"{len(names)} {what}: {listed(names)}"
        for what, names in (("missing", missing), ("left over", sorted(extra, key=_natural)))
        if names
    ]
    if problems:
        raise WeightsError(f"{path} has other tensors than expected. {'. '.join(problems)}")


def check_shapes(path: Path, tensors: Mapping[str, Tensor], keys: Sequence[Key], sizes: Mapping[str, int]) -> None:
    """Raises: WeightsError: tensors have other shapes than `keys` and `sizes` require."""
    wrong = []
    for key in keys:
        wanted = tuple(sizes[one] if isinstance(one, str) else one for one in key.shape)
        if (shape := tuple(tensors[key.source].shape)) != wanted:
            names = " x ".join(str(one) for one in key.shape)
            wrong.append(f"{key.source} is {shape} where {names} is {wanted}")
    if wrong:
        raise WeightsError(f"{path} has tensors of other sizes, {len(wrong)}: {listed(wrong, '; ')}")


def check_finite(path: Path, name: str, tensor: Tensor) -> Tensor:
    """Return the tensor.

    Raises: WeightsError: a value is infinite or NaN.
    """
    if not bool(torch.isfinite(tensor).all()):
        raise WeightsError(f"{path}: {name} is not finite", hint="fetch it again")
    return tensor


def length(tensor: Tensor, dimension: int) -> int:
    """Return the size of a dimension; 0 where the tensor has no such dimension."""
    return tensor.shape[dimension] if -tensor.dim() <= dimension < tensor.dim() else 0


def listed(names: Sequence[str], separator: str = ", ") -> str:
    """Join the first `MAX_NAMES` names, and count the others."""
    rest = len(names) - MAX_NAMES
    return separator.join(names[:MAX_NAMES]) + (f"{separator}and {rest} more" if rest > 0 else "")


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sort key that orders numbers in names by value: block 2 before block 10."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]
