"""Runs a Llama one transformer block at a time, each loaded from disk when needed, so that a large one needs little
memory.

It is used to compare weights that do not fit into memory as a whole. The blocks are those of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mechm_runtime.system.progress import StageProgress


@dataclass(frozen=True, slots=True)
class UnmergedLora:
    """A LoRA pair that is applied beside a linear layer instead of merged into it: A (rank, in), B (out, rank)."""

    a: Tensor
    b: Tensor
    scale: float

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Add the pair's output to the layer's; a forward hook."""
        return output + self.scale * (inputs[0] @ self.a.T) @ self.b.T


def log_probabilities(
    config: Any,
    tensor: Callable[[str], Tensor],
    prompts: Sequence[Sequence[int]],
    *,
    lora: Mapping[str, UnmergedLora] | None = None,
    on_block: StageProgress | None = None,
) -> list[Tensor]:
    """Compute log-probabilities of the next token after every token of every prompt.

    config: a LlamaConfig. tensor: returns a weight in float32 by its name in the Hugging Face layout. lora: unmerged
        pairs by module. on_block: called with (blocks done, blocks in total).
    Returns: float32 (tokens, vocabulary) for each prompt.
    """
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

    config._attn_implementation = "sdpa"  # causal where no mask is given
    rotary = LlamaRotaryEmbedding(config)
    with torch.inference_mode():
        embeddings = tensor("model.embed_tokens.weight")
        states = [embeddings[torch.tensor(list(prompt))][None] for prompt in prompts]
        for number in range(config.num_hidden_layers):
            block = _load_module(partial(LlamaDecoderLayer, config, number), tensor, f"model.layers.{number}.")
            for module, pair in (lora or {}).items():
                if module.startswith(f"model.layers.{number}."):
                    block.get_submodule(module.removeprefix(f"model.layers.{number}.")).register_forward_hook(pair)
            states = [block(x, position_embeddings=rotary(x, torch.arange(x.shape[1])[None])) for x in states]
            if on_block is not None:
                on_block(number + 1, config.num_hidden_layers)
        norm = _load_module(partial(LlamaRMSNorm, config.hidden_size, config.rms_norm_eps), tensor, "model.norm.")
        head = embeddings if config.tie_word_embeddings else tensor("lm_head.weight")
        return [(norm(x)[0] @ head.T).log_softmax(-1) for x in states]


def _load_module(make: Callable[[], nn.Module], tensor: Callable[[str], Tensor], prefix: str) -> nn.Module:
    """Make a module without initialising its weights, and load them."""
    with torch.device("meta"):
        module = make()
    module.load_state_dict({name: tensor(prefix + name) for name in module.state_dict()}, assign=True)
    return module.eval()
