"""Every tensor of a checkpoint: its name and shape in the file, and whether an exported output depends on it."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from mechm_runtime.errors import WeightsError

COMPUTED = re.compile(r"(^|\.)(position_ids|inv_freq|num_batches_tracked|relative_position_index)$")
"""Constants in old checkpoints that a model computes itself, and a counter of training: no weights."""
OLD_NAMES = (
    (re.compile(r"\.weight_g$"), ".parametrizations.weight.original0"),
    (re.compile(r"\.weight_v$"), ".parametrizations.weight.original1"),
    (re.compile(r"\.gamma$"), ".weight"),
    (re.compile(r"\.beta$"), ".bias"),
)
"""Names of older torch (weight_norm) and of TensorFlow's norms, which transformers renames while it loads."""
TRAINING = re.compile(r"(^|\.)(masked_spec_embed|mask_token)$")
"""Weights that a model reads only while it is trained."""
MOST_NAMES = 6
"""Tensors that a summary names one by one; more are counted by what their names begin with."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model of transformers and what it did not take from its checkpoint.

    model: float32, in eval mode. stored: names in the checkpoint's files. unexpected: those that transformers found no
    place for. missing: weights of the model that the checkpoint lacks; they are random. parameters: by name, as loaded.
    """

    model: Any
    stored: tuple[str, ...] = ()
    unexpected: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()
    parameters: Mapping[str, nn.Parameter] = field(default_factory=dict)


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in a folder's weight files, without reading values.

    The files are those that transformers chooses: model.safetensors, whole or in shards, else pytorch_model.bin.
    Raises: WeightsError: a damaged file, or a pickle that holds more than tensors.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _weight_files(folder):
        try:
            shapes.update(_safetensors_shapes(path) if path.suffix == ".safetensors" else _pickled_shapes(path))
        except (SafetensorError, OSError, RuntimeError, ValueError, pickle.UnpicklingError, EOFError) as error:
            raise WeightsError(
                f"{path.name} does not load: {(str(error).strip() or type(error).__name__).splitlines()[0][:200]}",
                hint="weights are read from *.safetensors, or from pytorch_model.bin that holds tensors alone",
            ) from error
    return shapes


def used_parameters(module: nn.Module, inputs: Iterable[torch.Tensor]) -> set[int]:
    """Ids of the parameters that a floating-point output depends on.

    They are found in autograd's graph of one call, so that layers that run without reaching an output do not count.
    """
    parameters = list(module.parameters())
    was_trained = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        with torch.enable_grad():
            answer = module(*inputs)
        outputs = answer if isinstance(answer, tuple) else (answer,)
        return {id(leaf) for leaf in _leaves(output.grad_fn for output in outputs)}
    finally:
        for parameter, trained in zip(parameters, was_trained, strict=True):
            parameter.requires_grad_(trained)


def find_left_out(loaded: LoadedModel, module: nn.Module, inputs: Iterable[torch.Tensor]) -> tuple[str, ...]:
    """The checkpoint's tensors that no exported output depends on, by their names in its files, sorted.

    module: what is exported of the model. inputs: of the module, to try it on.
    Raises: WeightsError: an output depends on weights that the checkpoint lacks.
    """
    used_ids = used_parameters(module, inputs)
    replaced = {
        name
        for name, parameter in loaded.model.named_parameters()
        if name in loaded.parameters and parameter is not loaded.parameters[name] and id(parameter) in used_ids
    }
    used = {name for name, parameter in loaded.parameters.items() if id(parameter) in used_ids} | replaced
    if random := sorted(loaded.missing & used):
        raise WeightsError(
            f"the checkpoint lacks {len(random)} weights that the output depends on, {random[0]} first",
            hint="--task feature-extraction needs no pooling layer",
        )
    ignored = getattr(loaded.model, "_keys_to_ignore_on_load_unexpected", None) or ()
    left_out = set(loaded.unexpected)
    known = dict(loaded.model.state_dict(keep_vars=True)) | dict(loaded.parameters)
    for name in loaded.stored:
        place = _place(name, known, loaded.model.base_model_prefix)
        unused = place in loaded.parameters and place not in used
        if unused or (not place and any(re.search(pattern, name) for pattern in ignored)):
            left_out.add(name)
    return tuple(sorted(name for name in left_out if not COMPUTED.search(name)))


def left_out_lines(names: Collection[str]) -> list[str]:
    """Lines that name left-out tensors: one for weights that are lost, one for those that only training reads."""
    lost = [name for name in names if not TRAINING.search(name)]
    training = [name for name in names if TRAINING.search(name)]
    lines = [f"left out: {summarize_names(lost)}"] if lost else []
    return lines + ([f"left out, read in training only: {summarize_names(training)}"] if training else [])


def summarize_names(names: Collection[str]) -> str:
    """Tensor names on a line: all of them where they are few, else how many begin with the same words."""
    if len(names) <= MOST_NAMES:
        return ", ".join(names)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition(".")[0], []).append(name)
    if len(groups) == 1:  # all below one model: its parts
        groups = {}
        for name in names:
            groups.setdefault(".".join(name.split(".")[:2]), []).append(name)
    return ", ".join(
        f"{prefix}.* ({len(group)} tensors)" if len(group) > 2 else ", ".join(group) for prefix, group in groups.items()
    )


def _weight_files(folder: Path) -> list[Path]:
    for whole in ("model.safetensors", "pytorch_model.bin"):
        if (folder / whole).is_file():
            return [folder / whole]
        index = folder / f"{whole}.index.json"
        if index.is_file():
            try:
                shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
                return [folder / Path(shard).name for shard in sorted(shards)]
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise WeightsError(f"{index.name} is damaged: {error}") from error
    return []


def _safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)


def _pickled_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    state = torch.load(path, map_location="meta", weights_only=True)
    return {str(name): tuple(value.shape) for name, value in state.items() if isinstance(value, torch.Tensor)}


def _place(name: str, known: Collection[str], prefix: str) -> str:
    """The model's name of a stored tensor, or an empty string where none of the usual renamings leads to one."""
    for pattern, new in OLD_NAMES:
        if name not in known:
            renamed = pattern.sub(new, name)
            name = renamed if any(form in known for form in _forms(renamed, prefix)) else name
    return next((form for form in _forms(name, prefix) if form in known), "")


def _forms(name: str, prefix: str) -> tuple[str, ...]:
    """A name as it is, below the base model, and without whatever it lies below."""
    inside = name.removeprefix(f"{prefix}.") if prefix else name
    below = f"{prefix}.{name}" if prefix else name
    return (name, inside, below, name.partition(".")[2])


def _leaves(roots: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Parameters at the ends of autograd's graph."""
    waiting = [root for root in roots if root is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if (variable := getattr(node, "variable", None)) is not None:
            yield variable
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
