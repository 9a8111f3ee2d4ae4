"""A merged Llama's linear layers in 8 bits, in the layout compressed-tensors, which vLLM loads.

Weights have one scale per row; activations get one scale per token at run time, so scales need no calibration data.
Channels are smoothed first on real conversations (SmoothQuant, Xiao et al. 2023). The factors are folded into the norms
and layers that compute the activations, so that the model stays a plain Llama. llm-compressor, which writes the same
layout, requires other versions of transformers and compressed-tensors than vLLM 0.32 does (its 0.14 against those of
constraints.txt).
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

MIN_MAGNITUDE = 1e-5
"""Lower limit of magnitudes, for channels that are never active and rows of zeros."""
STRENGTH = 0.5
"""Share of an activation's range that moves into the weights (SmoothQuant's alpha)."""
MAX_SHARD = "5GB"


@dataclass(frozen=True, slots=True)
class Scheme:
    """An 8-bit number format, and its names in compressed-tensors.

    largest: largest magnitude of the dtype. kind, layout: compressed-tensors' names of the number and of the storage.
    """

    dtype: torch.dtype
    largest: float
    kind: str
    layout: str

    def scale(self, values: Tensor) -> Tensor:
        """One scale per row, which maps the row's largest magnitude to the dtype's."""
        return values.abs().amax(-1, keepdim=True).clamp_min(MIN_MAGNITUDE) / self.largest

    def quantize(self, values: Tensor) -> Tensor:
        """Round scaled values to the dtype."""
        if not self.dtype.is_floating_point:
            values = values.round()
        return values.clamp(-self.largest, self.largest).to(self.dtype)


SCHEMES: Mapping[SchemeName, Scheme] = {
    "int8": Scheme(torch.int8, 127.0, "int", "int-quantized"),
    "fp8": Scheme(torch.float8_e4m3fn, 448.0, "float", "float-quantized"),
}


def smooth_channels(llama: Any, ask: Callable[[], T], *, values: bool = True) -> T:
    """Scale large channels of activations down, and the weights that read them up, in place; answers stay the same.

    llama: a Llama of transformers in fp32. ask: runs the model on real questions. values: whether attention's values
    are scaled too; where they are cached from one question to the next, they must not be.
    Returns: the result of `ask`.
    """
    layers = llama.model.layers
    with _channel_peaks([linear for layer in layers for linear in _distinct_inputs(layer)]) as peaks:
        answered = ask()
    with torch.no_grad():
        for layer in layers:
            attention, mlp = layer.self_attn, layer.mlp
            for norm, linears in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            ):
                norm.weight /= _scale_columns(linears, peaks[linears[0]])
            mlp.up_proj.weight /= _scale_columns((mlp.down_proj,), peaks[mlp.down_proj])[:, None]
            if values:
                # Heads that share values share factors too, since the values are computed once for all of them.
                groups = attention.num_key_value_groups
                factors = _scale_columns((attention.o_proj,), peaks[attention.o_proj], groups, attention.head_dim)
                attention.v_proj.weight /= factors[:, None]
    return answered


def simulate_quantization(llama: Any, scheme: Scheme) -> None:
    """Make a model compute as its 8-bit form does, in place: weights are rounded now, activations at run time."""

    def round_inputs(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        scale = scheme.scale(inputs[0])
        return (scheme.quantize(inputs[0] / scale).to(inputs[0].dtype) * scale, *inputs[1:])

    for linear in _linears(llama).values():
        scale = scheme.scale(linear.weight.data)
        linear.weight.data = scheme.quantize(linear.weight.data / scale).to(scale.dtype) * scale
        linear.register_forward_pre_hook(round_inputs)


def write_compressed(llama: Any, scheme: Scheme, dtype: torch.dtype, folder: Path) -> None:
    """Replace the weights of a Hugging Face folder by 8-bit ones.

    llama: smoothed by `smooth_channels`, not yet rounded. dtype: of all weights but those of the linear layers.
    """
    from huggingface_hub import save_torch_state_dict

    tied = {"lm_head.weight"} if llama.config.tie_word_embeddings else set()
    linears = _linears(llama)
    state: dict[str, Tensor] = {}
    for name, values in llama.state_dict().items():
        layer = name.removesuffix(".weight")
        if layer in linears:
            scale = scheme.scale(values)
            state[name], state[f"{name}_scale"] = scheme.quantize(values / scale), scale.to(dtype)
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
    """Linear layers by name, without the one over the vocabulary."""
    return {
        name: module
        for name, module in llama.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("model.layers.")
    }


def _distinct_inputs(layer: Any) -> tuple[nn.Linear, ...]:
    """Linear layers of a transformer layer, one for each activation that linear layers read."""
    return layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.down_proj


@contextmanager
def _channel_peaks(linears: Iterable[nn.Linear]) -> Iterator[dict[nn.Module, Tensor]]:
    """Record the largest magnitude of each input channel, (in,), of the layers that run inside the context."""
    found: dict[nn.Module, Tensor] = {}

    def record(linear: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        peak = inputs[0].detach().abs().flatten(0, -2).amax(0)
        found[linear] = torch.maximum(found[linear], peak) if linear in found else peak

    hooks = [linear.register_forward_pre_hook(record) for linear in linears]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _scale_columns(linears: tuple[nn.Linear, ...], peaks: Tensor, groups: int = 1, head_dim: int = 1) -> Tensor:
    """Multiply the layers' columns by smoothing factors, and return the factors, by which their input must be divided.

    groups: number of heads that share an input of `head_dim` channels; the factors are then those of the shared input.
    """
    rows = torch.stack([linear.weight.abs().amax(0) for linear in linears]).amax(0)
    if groups > 1:
        peaks, rows = (x.view(-1, groups, head_dim).amax(1).flatten() for x in (peaks, rows))
    factors = peaks.clamp_min(MIN_MAGNITUDE) ** STRENGTH / rows.clamp_min(MIN_MAGNITUDE) ** (1 - STRENGTH)
    factors = factors / factors.log().mean().exp()
    spread = factors.view(-1, 1, head_dim).expand(-1, groups, -1).flatten() if groups > 1 else factors
    for linear in linears:
        linear.weight *= spread
    return factors
