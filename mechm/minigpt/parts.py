"""Reads the parts of a checkpoint (variant, LoRA, ViT, projections) and checks them against the Llama."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mechm.llm.stored_base import StoredBase
from mechm.minigpt import keys
from mechm.minigpt.checkpoint import (
    check_finite,
    check_names,
    check_shapes,
    length,
    listed,
    read_torch_file,
    tensors_in,
)
from mechm.minigpt.config import PATCHES_PER_TOKEN, ImageTokensConfig, Variant, VitShape
from mechm.minigpt.lora import LoraPairs, lora_alpha, read_lora
from mechm.minigpt.vit import Vit, read_vit
from mechm_runtime.errors import InputError, WeightsError

LnVision = Literal["checkpoint", "identity"]


@dataclass(frozen=True, slots=True)
class Parts:
    """Checked parts of a checkpoint. unused: names of tensors that are not imported."""

    vit: Vit
    projections: Mapping[str, Tensor]
    lora: LoraPairs
    config: ImageTokensConfig
    unused: tuple[str, ...]


def llama_shapes(base: StoredBase) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """Return the Llama's config, and the shapes of its weights by name.

    Raises: WeightsError: it is not a Llama, or weights are missing or unexpected.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import LlamaConfig, LlamaForCausalLM

    if base.config.get("model_type") != "llama":
        raise WeightsError(f"{base} is a {base.config.get('model_type')!r}, where a Llama is expected")
    try:
        config = LlamaConfig(**base.config)
        with torch.device("meta"):
            state = LlamaForCausalLM(config).state_dict()  # type: ignore[no-untyped-call]
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise WeightsError(f"the config of {base.folder} is none of a Llama: {error}") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    unused = (r".*rotary_emb\.inv_freq$", *((r"lm_head\.weight$",) if config.tie_word_embeddings else ()))
    check_names(base.folder, base.tensors, shapes, unused)
    wrong = [
        f"{name} is {base.tensors[name].shape} where its config says {wanted}"
        for name, wanted in shapes.items()
        if base.tensors[name].shape != wanted
    ]
    if wrong:
        raise WeightsError(f"{base.folder} has weights of other sizes, {len(wrong)}: {listed(wrong, '; ')}")
    return config, shapes


def read_parts(
    path: Path,
    vit_path: Path | None,
    weights: Mapping[str, tuple[int, ...]],
    n_blocks: int,
    alpha: float | None,
    ln_vision: LnVision,
    shape: VitShape,
) -> Parts:
    """Read and check a checkpoint.

    vit_path, alpha, ln_vision: as in `mechm.minigpt.importing.import_minigpt`. weights, n_blocks: of the Llama, shapes
        by name.
    Raises: WeightsError: files are damaged or do not fit each other. InputError: options contradict the files.
    """
    content = read_torch_file(path)
    tensors = tensors_in(path, content)
    own_vit = {
        name.removeprefix(keys.VIT_PREFIX): tensors.pop(name)
        for name in list(tensors)
        if name.startswith(keys.VIT_PREFIX)
    }
    lora = {name: tensors.pop(name) for name in list(tensors) if re.match(keys.LORA, name)}
    variant = _find_variant(tensors)
    _check_ln_vision(path, tensors, ln_vision)
    norm = keys.LN_VISION if ln_vision == "checkpoint" else ()
    wanted = (*norm, *keys.PROJECTIONS[variant])
    check_names(path, tensors, [key.source for key in wanted], (*keys.UNUSED[variant], keys.RECOMPUTED))
    pairs = read_lora(path, lora, weights, n_blocks, lora_alpha(content.get("config"), alpha))
    vit = _read_own_or_given_vit(path, own_vit, vit_path, shape)
    feature_size = length(tensors[keys.FEATURE_PROJECTIONS[0].source], -1) if variant == "emotion-llama" else 0
    llama_size = weights["model.norm.weight"][0]
    projections = _read_projections(path, tensors, wanted, vit.hidden_size, llama_size, feature_size)
    config = _image_tokens_config(path, variant, vit, shape, llama_size, feature_size)
    unused = [name for name in tensors if name not in {key.source for key in wanted}]
    return Parts(vit, projections, pairs, config, (*unused, *vit.unused))


def _find_variant(tensors: Mapping[str, Tensor]) -> Variant:
    """Recognise the variant by the tensors that only it has."""
    variant: Variant = "minigpt-v2"
    for name, tensor in keys.VARIANT_TENSORS.items():
        variant = name if tensor in tensors else variant
    return variant


def _image_tokens_config(
    path: Path, variant: Variant, vit: Vit, shape: VitShape, llama_size: int, feature_size: int
) -> ImageTokensConfig:
    """Raises: WeightsError: the sizes contradict each other."""
    try:
        return ImageTokensConfig(
            variant,
            vit.hidden_size,
            vit.intermediate_size,
            shape.n_layers,
            vit.hidden_size // shape.head_size,
            vit.patch_size,
            shape.image_size,
            llama_size,
            feature_size,
        )
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error


def _read_projections(
    path: Path,
    tensors: Mapping[str, Tensor],
    wanted: Sequence[keys.Key],
    hidden_size: int,
    llama_size: int,
    feature_size: int,
) -> dict[str, Tensor]:
    """Return the wanted tensors by their names here, and an identity where `ln_vision` is not among them.

    Raises: WeightsError: a tensor has another shape or is not finite.
    """
    sizes = {
        "width": hidden_size,
        "token": PATCHES_PER_TOKEN * hidden_size,
        "llama": llama_size,
        "features": feature_size,
    }
    check_shapes(path, tensors, wanted, sizes)
    identity = {"ln_vision.weight": torch.ones(hidden_size), "ln_vision.bias": torch.zeros(hidden_size)}
    return identity | {key.target: check_finite(path, key.source, tensors[key.source]) for key in wanted}


def _check_ln_vision(path: Path, tensors: Mapping[str, Tensor], ln_vision: LnVision) -> None:
    """Check the option against the checkpoint: a training that froze `ln_vision` did not save it.

    Raises: InputError: `identity` for a checkpoint that has it. WeightsError: `checkpoint` for one without it.
    """
    absent = [key.source for key in keys.LN_VISION if key.source not in tensors]
    if ln_vision == "identity" and len(absent) < len(keys.LN_VISION):
        raise InputError(f"{path} has an ln_vision of its own", hint="leave --ln-vision identity out")
    if ln_vision == "checkpoint" and len(absent) == len(keys.LN_VISION):
        raise WeightsError(
            f"{path} lacks {' and '.join(absent)}: its training froze them, and what is frozen was not saved",
            hint="--ln-vision identity answers as the original code does with this checkpoint",
        )


def _read_own_or_given_vit(path: Path, own: Mapping[str, Tensor], vit_path: Path | None, shape: VitShape) -> Vit:
    """Read the checkpoint's ViT if it has one, else the one in `vit_path`."""
    if own and vit_path is not None:
        raise InputError(f"{path} has a ViT of its own, which goes before {vit_path}", hint="leave --vit out")
    if own:
        return read_vit(path, own, shape)
    if vit_path is None:
        raise InputError(f"{path} has no ViT", hint="name the file that MiniGPT-v2 starts from: --vit eva_vit_g.pth")
    return read_vit(vit_path, tensors_in(vit_path, read_torch_file(vit_path)), shape)
