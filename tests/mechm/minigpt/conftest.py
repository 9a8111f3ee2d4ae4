"""Files as MiniGPT-v2's users have them, at reduced width: a Llama, its tokenizer, a ViT, checkpoints; all random."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from mechm.minigpt.config import VitShape

VOCABULARY = 500
SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "bos_token_id": 1, "eos_token_id": 2}
"""Llama-2's published generation settings, which a greedy answer must not follow."""

SMALL = VitShape(n_layers=2, head_size=16, image_size=112)
"""8 x 8 patches, interpolated from 4 x 4."""

TEXTS = (
    "[emotion] Ana: I got the job! Ben: No way, congratulations! <Img><ImageHere></Img> [INST] [/INST]",
    "Please determine which emotion label in the video represents: happy, sad, neutral, angry, worried, surprise.",
    "<video><VideoHere></video> <feature><FeatureHere></feature> The person in video says: the dog is loose again.",
    "neutral anger disgust fear joy sadness surprise",
)


def make_tokenizer(prefix: bool = True) -> Tokenizer:
    """Like Llama-2's of 2023: a space before every piece of text, `<s>` before every prompt.

    prefix: without it, no space before text after `<s>`, as in later tokenizers.
    """
    tokenizer = Tokenizer(BPE(fuse_unk=True, byte_fallback=True))
    steps: list[Any] = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    specials = [AddedToken(one, special=True, normalized=False) for one in ("<unk>", "<s>", "</s>")]
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer.train_from_iterator(
        TEXTS, BpeTrainer(vocab_size=VOCABULARY, special_tokens=[*specials, *letters], show_progress=False)
    )
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def write_llama(folder: Path, **sizes: Any) -> Path:
    """A Llama in the Hugging Face layout, in fp16 as it is on the hub."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "initializer_range": 0.15,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **sizes,
        }
    )
    LlamaForCausalLM(config).half().save_pretrained(folder)  # type: ignore[no-untyped-call]
    make_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps(SAMPLING))
    (folder / "LICENSE.txt").write_text("the terms")
    return folder


def vit_state(n_layers: int, width: int, mlp: int, patch: int = 14, side: int = 4, seed: int = 1) -> dict[str, Tensor]:
    """The content of eva_vit_g.pth: one block more than is read, a norm and a head."""
    torch.manual_seed(seed)

    def linear(out: int, *into: int) -> Tensor:
        return torch.randn(out, *into) / Tensor(list(into)).prod().sqrt()

    state = {
        "cls_token": torch.randn(1, 1, width),
        "pos_embed": torch.randn(1, side * side + 1, width),
        "patch_embed.proj.weight": linear(width, 3, patch, patch),
        "patch_embed.proj.bias": 0.1 * torch.randn(width),
    }
    for number in range(n_layers + 1):
        block = f"blocks.{number}"
        for name, (out, into) in {
            "attn.proj": (width, width),
            "mlp.fc1": (mlp, width),
            "mlp.fc2": (width, mlp),
        }.items():
            state[f"{block}.{name}.weight"] = linear(out, into)
            state[f"{block}.{name}.bias"] = 0.1 * torch.randn(out)
        state[f"{block}.attn.qkv.weight"] = linear(3 * width, width)
        state |= {f"{block}.attn.{side}_bias": torch.randn(width) for side in "qv"}
        for norm in ("norm1", "norm2"):
            state |= {
                f"{block}.{norm}.weight": 1 + 0.2 * torch.randn(width),
                f"{block}.{norm}.bias": 0.1 * torch.randn(width),
            }
    state |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width), "head.weight": linear(1000, width)}
    return {name: tensor.half() for name, tensor in state.items()}


def checkpoint_state(
    *, n_layers: int, width: int, llama: int = 64, rank: int = 4, adapter_name: str = "", seed: int = 2
) -> dict[str, Tensor]:
    """What MiniGPT-v2's training saves under `model`, by transformers 4.30 and peft 0.2 (no adapter's name)."""
    torch.manual_seed(seed)
    state = {
        "ln_vision.weight": 1 + 0.3 * torch.randn(width),
        "ln_vision.bias": 0.1 * torch.randn(width),
        "llama_proj.weight": torch.randn(llama, 4 * width) / (4 * width) ** 0.5,
        "llama_proj.bias": 0.1 * torch.randn(llama),
    }
    for number in range(n_layers):
        attention = f"llama_model.base_model.model.model.layers.{number}.self_attn"
        state[f"{attention}.rotary_emb.inv_freq"] = torch.ones(llama // 4)
        for target in ("q_proj", "v_proj"):
            state[f"{attention}.{target}.lora_A{adapter_name}.weight"] = torch.randn(rank, llama) / llama**0.5
            state[f"{attention}.{target}.lora_B{adapter_name}.weight"] = 0.1 * torch.randn(llama, rank)
    return state


def write_checkpoint(path: Path, state: dict[str, Tensor], **config: Any) -> Path:
    """As the runner writes it, beside the optimizer's state."""
    torch.save({"model": state, "optimizer": {"state": {}}, "config": {"model": config}, "epoch": 6}, path)
    return path


@dataclass(frozen=True)
class Files:
    """Paths of one import. small: what `import_minigpt` is told of a ViT of reduced depth."""

    checkpoint: Path
    llama: Path
    vit: Path
    small: VitShape = SMALL


@pytest.fixture(scope="session")
def kit() -> dict[str, Callable[..., Any]]:
    """A maker of files, for tests that need others than `files`."""
    return {
        "llama": write_llama,
        "vit": vit_state,
        "checkpoint": checkpoint_state,
        "write": write_checkpoint,
        "tokenizer": make_tokenizer,
    }


@pytest.fixture(scope="session")
def shared_files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Two blocks each of the ViT and the Llama. Treat them as read-only."""
    folder = tmp_path_factory.mktemp("minigpt")
    torch.save(vit_state(2, 32, 48), folder / "eva_vit_g.pth")
    return Files(
        write_checkpoint(folder / "checkpoint.pth", checkpoint_state(n_layers=2, width=32)),
        write_llama(folder / "llama"),
        folder / "eva_vit_g.pth",
    )
