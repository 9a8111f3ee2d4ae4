"""Table of the tensors in MiniGPT-v2's files: their names here, their shapes, and those that are not imported.

Names are from Vision-CAIR/MiniGPT-4 (`models/eva_vit.py`, `models/minigpt_v2.py`), MIPS-COLT/MER-MCE and
ZebangCheng/Emotion-LLaMA, which save trained weights with peft 0.2 and transformers 4.30.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mechm.minigpt.config import Variant


@dataclass(frozen=True, slots=True)
class Key:
    """A tensor that is imported.

    source: its name in the file. target: its name in `mechm.minigpt.image_tokens`. shape: numbers, or names of sizes:
    width, mlp, qkv, patch and positions of the ViT, token (the patches of one token), llama, features.
    """

    source: str
    target: str
    shape: tuple[int | str, ...]


def linear(source: str, target: str, out_size: str, in_size: str) -> tuple[Key, Key]:
    """Weight and bias of a linear layer."""
    return Key(f"{source}.weight", f"{target}.weight", (out_size, in_size)), norm(source, target, out_size)[1]


def norm(source: str, target: str, size: str = "width") -> tuple[Key, Key]:
    """Weight and bias of a LayerNorm."""
    return Key(f"{source}.weight", f"{target}.weight", (size,)), Key(f"{source}.bias", f"{target}.bias", (size,))


POSITIONS = Key("pos_embed", "embeddings.position_embedding", (1, "positions", "width"))

PATCHES = (
    Key("cls_token", "embeddings.class_embedding", (1, 1, "width")),
    Key("patch_embed.proj.weight", "embeddings.patch_embedding.weight", ("width", 3, "patch", "patch")),
    Key("patch_embed.proj.bias", "embeddings.patch_embedding.bias", ("width",)),
    POSITIONS,
)

BLOCK = (
    *norm("norm1", "layer_norm1"),
    # The file has two biases, here they are one, with zeros for the keys between them.
    Key("attn.q_bias", "self_attn.q_bias", ("width",)),
    Key("attn.v_bias", "self_attn.v_bias", ("width",)),
    Key("attn.qkv.weight", "self_attn.qkv.weight", ("qkv", "width")),
    *linear("attn.proj", "self_attn.projection", "width", "width"),
    *norm("norm2", "layer_norm2"),
    *linear("mlp.fc1", "mlp.fc1", "mlp", "width"),
    *linear("mlp.fc2", "mlp.fc2", "width", "mlp"),
)

UNUSED_OF_VIT = (r"norm\.", r"fc_norm\.", r"head\.", r"mask_token$")
"""Patterns of a ViT's unused tensors, in addition to the blocks above the one whose output MiniGPT-v2 uses."""

VIT_PREFIX = "visual_encoder."
"""Prefix of a ViT that is part of the checkpoint because it was trained too."""

LN_VISION = norm("ln_vision", "ln_vision")
LLAMA_PROJ = linear("llama_proj", "llama_proj", "llama", "token")

FEATURE_PROJECTIONS = tuple(
    key
    for number in (1, 2, 3)
    for key in linear(f"feats_llama_proj{number}", f"feats_llama_proj.{number - 1}", "llama", "features")
)
CLASS_PROJECTION = linear("cls_tk_llama_proj", "cls_tk_llama_proj", "llama", "width")

VARIANT_TENSORS: Mapping[Variant, str] = {
    "emotion-llama": CLASS_PROJECTION[0].source,
    "mer-mce": "feats_llama_proj.weight",
}
"""A tensor that only this variant has; MiniGPT-v2 has neither."""

PROJECTIONS: Mapping[Variant, tuple[Key, ...]] = {
    "minigpt-v2": LLAMA_PROJ,
    "mer-mce": LLAMA_PROJ,
    "emotion-llama": (*LLAMA_PROJ, *FEATURE_PROJECTIONS, *CLASS_PROJECTION),
}

UNUSED: Mapping[Variant, tuple[str, ...]] = {
    "minigpt-v2": (),
    "mer-mce": (r"feats_llama_proj\.(weight|bias)$",),
    "emotion-llama": (r"attention\.(feats_prep|attention_mlp|fc_att|fc_out)\.",),
}
"""Patterns of tensors that the variant's code saves but does not use for answering."""

RECOMPUTED = r"llama_model\..*\.rotary_emb\.inv_freq$"
"""Pattern of buffers of transformers before 4.32, which are computed from the Llama's config."""

LORA = r"llama_model\.base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight$"
"""Pattern of one matrix of a LoRA pair: peft 0.2 wrote no adapter name, later versions write `default`."""

LORA_TARGETS = ("self_attn.q_proj", "self_attn.v_proj")
"""The layers of every block that MiniGPT-v2 adapts."""
