"""The text encoder: a BERT-family model over conversation windows, without its pooler."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from transformers import BertConfig, BertModel

from mechm.model.config import TextEncoderConfig
from mechm.quiet import quiet_transformers
from mechm_runtime.errors import WeightsError


class TextEncoder(nn.Module):
    """Token states of conversation windows; `mechm_runtime.text` makes the windows and pools the states."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        sizes = BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_tokens,
        )
        self.bert: BertModel = BertModel(sizes, add_pooling_layer=False)  # type: ignore[no-untyped-call]

    @classmethod
    def from_folder(cls, folder: Path, config: TextEncoderConfig) -> TextEncoder:
        """Load a transformers folder.

        Raises: WeightsError: its sizes differ from `config`.
        """
        encoder = cls(config)
        with quiet_transformers():
            encoder.bert = BertModel.from_pretrained(folder, add_pooling_layer=False)
        loaded = encoder.bert.config
        if (loaded.hidden_size, loaded.num_hidden_layers) != (config.hidden_size, config.n_layers):
            raise WeightsError(
                f"the text encoder is {loaded.num_hidden_layers} layers of {loaded.hidden_size}, "
                f"the preset wants {config.n_layers} of {config.hidden_size}"
            )
        return encoder.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids, attention_mask: int64 (B, T) -> float (B, T, hidden_size)."""
        states: Tensor = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states
