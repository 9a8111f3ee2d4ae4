"""The text encoder: an MPNet or BERT model over conversation windows, without its pooler.

Where the config has a LoRA rank, adapters on the encoder's linear layers are trained instead of the encoder, which
makes shipped weights a twentieth as large (Hu et al. 2021); `merged` merges them for export.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import BertConfig, BertModel, MPNetConfig

from mechm.model.config import TextEncoderConfig
from mechm.model.mpnet import MPNetEncoder
from mechm.model.transformers_output import quiet_transformers
from mechm_runtime.errors import WeightsError

LORA = ".lora_"
"""Part of the names of a LoRA adapter's tensors."""


class TextEncoder(nn.Module):
    """Encodes conversation windows to token states.

    `mechm_runtime.modalities.text_windows` makes the windows and pools the states.
    encoder: an encoder of `config`'s sizes; None for a random one.
    """

    def __init__(self, config: TextEncoderConfig, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        plain = _random_encoder(config) if encoder is None else encoder
        self.encoder: Any = _with_adapter(plain, config.lora_rank) if config.lora_rank else plain

    @classmethod
    def from_folder(cls, folder: Path, config: TextEncoderConfig) -> TextEncoder:
        """Load a transformers folder.

        Raises: WeightsError: its sizes differ from `config`.
        """
        kind = MPNetEncoder if config.architecture == "mpnet" else BertModel
        with quiet_transformers():
            encoder: Any = kind.from_pretrained(folder, add_pooling_layer=False, attn_implementation="eager")
        loaded = encoder.config
        found = (loaded.model_type, loaded.hidden_size, loaded.num_hidden_layers)
        if found != (config.architecture, config.hidden_size, config.n_layers):
            raise WeightsError(
                f"the text encoder in {folder} is {found[0]}, {found[2]} layers of {found[1]}; the preset wants "
                f"{config.architecture}, {config.n_layers} of {config.hidden_size}",
                hint="mechm weights fetch",
            )
        return cls(config, encoder).eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids, attention_mask: int64 (B, T) -> float (B, T, hidden_size)."""
        states: Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states

    def is_frozen(self, name: str) -> bool:
        """Whether training leaves a tensor unchanged: all but the adapter, or, without one, the embeddings."""
        return LORA not in name if self.config.lora_rank else ".embeddings." in name

    def merged(self) -> TextEncoder:
        """Merge the adapter, if any, into the layers, and return this encoder; it cannot be trained further."""
        if self.config.lora_rank:
            self.encoder = self.encoder.merge_and_unload()
        return self


def _random_encoder(config: TextEncoderConfig) -> nn.Module:
    sizes: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.intermediate_size,
    }
    if config.architecture == "mpnet":
        # MPNet's positions start at 2, after that of padding.
        return MPNetEncoder(MPNetConfig(**sizes, max_position_embeddings=config.max_tokens + 2))
    bert = BertConfig(**sizes, max_position_embeddings=config.max_tokens)
    return BertModel(bert, add_pooling_layer=False)  # type: ignore[no-untyped-call]


def _with_adapter(encoder: nn.Module, rank: int) -> Any:
    """Add a trainable LoRA adapter to every linear layer; the rest is frozen."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        encoder, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", lora_dropout=0.05)
    )
