"""MPNet with `scaled_dot_product_attention` as an option; transformers only has its attention as separate operators.

The separate operators are portable. The single operator is exported as one, which onnxruntime's int8 kernels run fast.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import MPNetConfig, MPNetModel
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention


class SwitchableAttention(MPNetSelfAttention):
    """MPNet's attention, as `scaled_dot_product_attention` where the config says `sdpa`."""

    def __init__(self, config: MPNetConfig) -> None:
        super().__init__(config)  # type: ignore[no-untyped-call]
        self.config = config

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, ...]:
        """As `MPNetSelfAttention.forward`."""
        if self.config._attn_implementation != "sdpa" or output_attentions or position_bias is None:
            attended: tuple[Tensor, ...] = super().forward(  # type: ignore[no-untyped-call]
                hidden_states, attention_mask, position_bias, output_attentions, **kwargs
            )
            return attended
        heads = (*hidden_states.shape[:-1], self.num_attention_heads, self.attention_head_size)
        q, k, v = (project(hidden_states).view(heads).transpose(1, 2) for project in (self.q, self.k, self.v))
        bias = position_bias
        if attention_mask is not None:
            masked = torch.finfo(bias.dtype).min / 2  # half, so that adding a negative bias stays finite
            bias = (
                torch.where(attention_mask, bias, masked)
                if attention_mask.dtype is torch.bool
                else bias + attention_mask
            )
        dropout = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        # Always copied: the kernel's memory layout differs between the exporter and torch's tracing.
        rows = mixed.transpose(1, 2).clone(memory_format=torch.contiguous_format)
        return (self.o(rows.flatten(2)),)


class MPNetEncoder(MPNetModel):  # type: ignore[no-untyped-call]
    """MPNet whose attention can be exported as one operator."""

    _supports_sdpa = True

    def __init__(self, config: MPNetConfig, add_pooling_layer: bool = False) -> None:
        super().__init__(config, add_pooling_layer)  # type: ignore[no-untyped-call]
        layers: Any = self.encoder.layer
        for layer in layers:
            layer.attention.attn = SwitchableAttention(config)
        self.post_init()  # type: ignore[no-untyped-call]
