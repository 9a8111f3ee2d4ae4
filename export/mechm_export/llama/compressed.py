"""A merged Llama's linear layers in 8 bits, in the layout that vLLM loads: compressed-tensors.

Weights get a scale a row, activations one a token as they come, so no calibration data is needed for scales; real
conversations serve to even out channels first (SmoothQuant, Xiao et al. 2023), here folded into the norms and layers
that make the activations, so that the model stays a plain Llama. llm-compressor, which writes the same layout, asks for
other versions of transformers and compressed-tensors than vLLM 0.32 does (its 0.14 against those of constraints.txt).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")

SchemeName = Literal["int8", "fp8"]

SMALLEST = 1e-5
"""Floor of magnitudes: a channel that is never active, a row of zeros."""
STRENGTH = 0.5
"""Share of an activation's range that moves into the weights (SmoothQuant's alpha)."""
MAX_SHARD = "5GB"


@dataclass(frozen=True, slots=True)
class Scheme:
    """How numbers are stored and multiplied.

    largest: magnitude that the dtype holds. kind, layout: compressed-tensors' names for number and storage.
    """

    dtype: torch.dtype
    largest: float
    kind: str
    layout: str

    def scale(self, values: Tensor) -> Tensor:
        """One a row, so that the row's largest magnitude is the dtype's."""
        return values.abs().amax(-1, keepdim=True).clamp_min(SMALLEST) / self.largest

    def rounded(self, values: Tensor) -> Tensor:
        """Scaled values in the dtype."""
        if not self.dtype.is_floating_point:
            values = values.round()
        return values.clamp(-self.largest, self.largest).to(self.dtype)


SCHEMES: Mapping[SchemeName, Scheme] = {
    "int8": Scheme(torch.int8, 127.0, "int", "int-quantized"),
    "fp8": Scheme(torch.float8_e4m3fn, 448.0, "float", "float-quantized"),
}


def even_out(llama: Any, ask: Callable[[], T], *, values: bool = True) -> T:
    """Move what makes channels of activations large into the weights behind them, in place; answers stay the same.

    llama: a Llama of transformers in fp32. ask: runs the model on real questions. values: whether attention's values
    change too; where they are kept from one question to the next, they must not.
    Returns: what that answered.
    """
    layers = llama.model.layers
    with _peaks([linear for layer in layers for linear in _firsts(layer)]) as peaks:
        answered = ask()
    with torch.no_grad():
        for layer in layers:
            attention, mlp = layer.self_attn, layer.mlp
            for norm, linears in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            ):
                norm.weight /= _fold(linears, peaks[linears[0]])
            mlp.up_proj.weight /= _fold((mlp.down_proj,), peaks[mlp.down_proj])[:, None]
            if values:
                # Heads that share values share factors too: the values are made once for all of them.
                groups = attention.num_key_value_groups
                factors = _fold((attention.o_proj,), peaks[attention.o_proj], groups, attention.head_dim)
                attention.v_proj.weight /= factors[:, None]
    return answered


def round_layers(llama: Any, scheme: Scheme) -> None:
    """Make a model compute as the 8-bit one does, in place: weights rounded, activations rounded as they come."""

    def round_inputs(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        scale = scheme.scale(inputs[0])
        return (scheme.rounded(inputs[0] / scale).to(inputs[0].dtype) * scale, *inputs[1:])

    for linear in _linears(llama).values():
        scale = scheme.scale(linear.weight.data)
        linear.weight.data = scheme.rounded(linear.weight.data / scale).to(scale.dtype) * scale
        linear.register_forward_pre_hook(round_inputs)


def write_compressed(llama: Any, scheme: Scheme, dtype: torch.dtype, folder: Path) -> None:
    """Replace the weights of a Hugging Face folder by 8-bit ones.

    llama: what `even_out` left, not yet rounded. dtype: of everything but the linear layers' weights.
    """
    from huggingface_hub import save_torch_state_dict

    tied = {"lm_head.weight"} if llama.config.tie_word_embeddings else set()
    linears = _linears(llama)
    state: dict[str, Tensor] = {}
    for name, values in llama.state_dict().items():
        layer = name.removesuffix(".weight")
        if layer in linears:
            scale = scheme.scale(values)
            state[name], state[f"{name}_scale"] = scheme.rounded(values / scale), scale.to(dtype)
        elif name not in tied:
            state[name] = values.to(dtype)
    mode = (folder / "config.json").stat().st_mode
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    save_torch_state_dict(state, folder, max_shard_size=MAX_SHARD, metadata={"format": "pt"})
    for file in folder.glob("model*.safetensors*"):
        file.chmod(mode)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = _description(scheme)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _description(scheme: Scheme) -> dict[str, Any]:
    number = {"num_bits": 8, "type": scheme.kind, "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": scheme.layout,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**number, "strategy": "channel", "dynamic": False},
                "input_activations": {**number, "strategy": "token", "dynamic": True},
            }
        },
    }


def _linears(llama: Any) -> dict[str, nn.Linear]:
    """Linear layers by name, the vocabulary's left out."""
    return {
        name: module
        for name, module in llama.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("model.layers.")
    }


def _firsts(layer: Any) -> tuple[nn.Linear, ...]:
    """A layer's linear layers, one for each activation that goes into some."""
    return layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.down_proj


@contextmanager
def _peaks(linears: Iterable[nn.Linear]) -> Iterator[dict[nn.Module, Tensor]]:
    """Largest magnitude of each input channel, (in,), of what runs through the layers meanwhile."""
    found: dict[nn.Module, Tensor] = {}

    def look(linear: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        peak = inputs[0].detach().abs().flatten(0, -2).amax(0)
        found[linear] = torch.maximum(found[linear], peak) if linear in found else peak

    hooks = [linear.register_forward_pre_hook(look) for linear in linears]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _fold(linears: tuple[nn.Linear, ...], peaks: Tensor, groups: int = 1, head_dim: int = 1) -> Tensor:
    """Multiply the layers' columns by factors, and return what their common input must be divided by.

    groups: heads that share an input of `head_dim` channels, side by side; factors are then of the shared input.
    """
    rows = torch.stack([linear.weight.abs().amax(0) for linear in linears]).amax(0)
    if groups > 1:
        peaks, rows = (x.view(-1, groups, head_dim).amax(1).flatten() for x in (peaks, rows))
    factors = peaks.clamp_min(SMALLEST) ** STRENGTH / rows.clamp_min(SMALLEST) ** (1 - STRENGTH)
    factors = factors / factors.log().mean().exp()
    spread = factors.view(-1, 1, head_dim).expand(-1, groups, -1).flatten() if groups > 1 else factors
    for linear in linears:
        linear.weight *= spread
    return factors
