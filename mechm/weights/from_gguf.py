"""Converts a Llama in a GGUF file to a plain transformers folder with its tokenizer; the weights are dequantized.

llama.cpp interleaves the rows of the query and key matrices for its rotary embedding; this is undone. Two checks are
made: every written tensor equals the file's, dequantized by the gguf package and rounded to the written dtype; and a
Llama in numpy, which rotates neighbouring pairs in the file's own row order as llama.cpp does, gives the same logits as
transformers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mechm.weights.check import Check, largest_difference, require_close
from mechm.weights.untyped import import_untyped
from mechm_runtime.errors import VerificationError, WeightsError
from mechm_runtime.system.arrays import softmax

DTYPE = torch.bfloat16
"""The dtype that HuggingFaceTB publishes the model in; much finer than the file's four bits."""

ATOL = 2e-3  # 30 layers of float32 in another order, logits of deviation 3; 1e-4 was measured on the shipped weights

Array = NDArray[np.float32]

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True, slots=True)
class LlamaSizes:
    """Sizes of a Llama in its GGUF header."""

    vocab_size: int
    hidden_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    intermediate_size: int
    max_positions: int
    rope_theta: float
    rms_norm_eps: float

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.n_heads


def convert(source: Path, target: Path) -> Check:
    """Convert the one `*.gguf` file in `source` into the folder `target`.

    Raises: WeightsError: not a Llama with tied embeddings. VerificationError: tensors or logits differ.
    """
    gguf = import_untyped("gguf")
    path = next(iter(sorted(source.glob("*.gguf"))))
    try:
        reader = gguf.GGUFReader(path)
        sizes = read_sizes(reader)
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        model = build_model(tensors, sizes, special_tokens(reader))
    except (KeyError, ValueError, IndexError) as error:
        raise WeightsError(f"{path.name} is not a Llama in GGUF: {error}") from error
    model.save_pretrained(target)
    write_tokenizer(path, target, sizes, tokens=reader.fields["tokenizer.ggml.tokens"].contents())

    reloaded = import_untyped("transformers").AutoModelForCausalLM.from_pretrained(target, dtype=DTYPE).eval()
    state = reloaded.state_dict()
    for name, expected in tensor_map(tensors, sizes):
        difference = largest_difference(name, _rounded(expected), state[name].float().numpy())
        require_close(name, "the GGUF file", difference, 0.0)
    input_ids = np.random.default_rng(0).integers(0, sizes.vocab_size, 12)
    with torch.no_grad():
        actual = reloaded.float()(torch.from_numpy(input_ids)[None]).logits[0].numpy()
    difference = largest_difference("llm logits", run_llama(tensors, sizes, input_ids), actual)
    return require_close("llm", "the dequantized tensors, and a Llama in numpy", difference, ATOL)


# --- Reading ---


def read_sizes(reader: Any) -> LlamaSizes:
    """Read the sizes in a GGUF header.

    Raises: KeyError: a field is missing. ValueError: another architecture.
    """

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    if field("general.architecture") != "llama":
        raise ValueError(f"architecture {field('general.architecture')!r}")
    return LlamaSizes(
        vocab_size=len(field("tokenizer.ggml.tokens")),
        hidden_size=int(field("llama.embedding_length")),
        n_layers=int(field("llama.block_count")),
        n_heads=int(field("llama.attention.head_count")),
        n_kv_heads=int(field("llama.attention.head_count_kv")),
        intermediate_size=int(field("llama.feed_forward_length")),
        max_positions=int(field("llama.context_length")),
        rope_theta=float(field("llama.rope.freq_base")),
        # The header stores a float32: 1e-05 reads as 9.999999747378752e-06.
        rms_norm_eps=float(np.format_float_scientific(np.float32(field("llama.attention.layer_norm_rms_epsilon")))),
    )


def special_tokens(reader: Any) -> dict[str, int]:
    """Return the ids of the begin, end and padding tokens."""
    names = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
    return {name: int(reader.fields[f"tokenizer.ggml.{key}"].contents()) for name, key in names.items()}


def dequantize(tensor: Any) -> Array:
    """Dequantize a GGUF tensor to float32, rows first."""
    return np.asarray(import_untyped("gguf").dequantize(tensor.data, tensor.tensor_type), np.float32)


# --- Mapping ---


def tensor_map(tensors: Mapping[str, Any], sizes: LlamaSizes) -> Iterator[tuple[str, Array]]:
    """Yield the name in transformers and the float32 array of every tensor in the file.

    Raises: KeyError: a tensor is missing or unexpected.
    """
    remaining = set(tensors)

    def take(name: str) -> Array:
        remaining.remove(name)
        return dequantize(tensors[name])

    yield "model.embed_tokens.weight", take("token_embd.weight")
    for i in range(sizes.n_layers):
        for source, name in _LAYER_NAMES.items():
            array = take(f"blk.{i}.{source}.weight")
            if source in ("attn_q", "attn_k"):
                array = deinterleave(array, sizes.n_heads if source == "attn_q" else sizes.n_kv_heads)
            yield f"model.layers.{i}.{name}.weight", array
    yield "model.norm.weight", take("output_norm.weight")
    if remaining:
        raise KeyError(f"tensors that a Llama with tied embeddings has not: {sorted(remaining)}")


def deinterleave(rows: Array, n_heads: int) -> Array:
    """Undo llama.cpp's row order: pairs (2j, 2j + 1) of a head become (j, j + head_dim / 2).

    rows: float32 (n_heads * head_dim, hidden_size).
    """
    head_dim = rows.shape[0] // n_heads
    return np.asarray(rows.reshape(n_heads, head_dim // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape))


def build_model(tensors: Mapping[str, Any], sizes: LlamaSizes, tokens: Mapping[str, int]) -> Any:
    """Build a `LlamaForCausalLM` in `DTYPE` with the file's weights."""
    transformers = import_untyped("transformers")
    config = transformers.LlamaConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.n_layers,
        num_attention_heads=sizes.n_heads,
        num_key_value_heads=sizes.n_kv_heads,
        intermediate_size=sizes.intermediate_size,
        max_position_embeddings=sizes.max_positions,
        rms_norm_eps=sizes.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_theta},
        tie_word_embeddings=True,
        **tokens,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = model.to(DTYPE).to_empty(device="cpu").eval()
    state = {name: torch.from_numpy(array.copy()).to(DTYPE) for name, array in tensor_map(tensors, sizes)}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    model.tie_weights()
    return model


def write_tokenizer(path: Path, target: Path, sizes: LlamaSizes, tokens: list[str]) -> None:
    """Write the file's tokenizer as a plain fast tokenizer; check it against the file's vocabulary and by round trips.

    Raises: VerificationError: an id has another token, or text changes by encoding and decoding.
    """
    transformers = import_untyped("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.model_max_length = sizes.max_positions
    tokenizer.save_pretrained(target)
    # transformers 5 writes its own class name, which vLLM and transformers 4 do not know.
    config_path = target / "tokenizer_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    for name in ("backend", "is_local", "local_files_only"):
        config.pop(name, None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config_path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    reloaded = transformers.PreTrainedTokenizerFast.from_pretrained(target)
    if reloaded.convert_ids_to_tokens(list(range(len(tokens)))) != tokens:
        raise VerificationError("the written tokenizer has other tokens than the GGUF file")
    for text in ("Hello, world!", "Why  did you\n\nleave? 12,345 €"):
        if reloaded.decode(reloaded.encode(text, add_special_tokens=False)) != text:
            raise VerificationError(f"the written tokenizer does not give {text!r} back")


# --- The reference ---


def _rounded(array: Array) -> Array:
    return np.asarray(torch.from_numpy(np.array(array)).to(DTYPE).float().numpy())


def run_llama(tensors: Mapping[str, Any], sizes: LlamaSizes, input_ids: NDArray[np.int64]) -> Array:
    """Run a Llama in numpy, float32, on the file's tensors in their own row order, rounded to `DTYPE`.

    input_ids: int64 (length,).
    Returns: float32 (length, vocab_size), logits.
    """

    def matrix(name: str) -> Array:
        return _rounded(dequantize(tensors[f"{name}.weight"]))

    def norm(x: Array, name: str) -> Array:
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(sizes.rms_norm_eps))
        return np.asarray(x / scale * matrix(name))

    def heads(x: Array, n_heads: int) -> Array:
        return x.reshape(len(x), n_heads, sizes.head_dim).swapaxes(0, 1)

    embeddings = matrix("token_embd")
    hidden = embeddings[input_ids]
    for i in range(sizes.n_layers):
        layer = f"blk.{i}"
        x = norm(hidden, f"{layer}.attn_norm")
        q = _rotate_pairs(heads(x @ matrix(f"{layer}.attn_q").T, sizes.n_heads), sizes.rope_theta)
        k = _rotate_pairs(heads(x @ matrix(f"{layer}.attn_k").T, sizes.n_kv_heads), sizes.rope_theta)
        v = heads(x @ matrix(f"{layer}.attn_v").T, sizes.n_kv_heads)
        attended = _causal_attention(q, k, v).swapaxes(0, 1).reshape(len(input_ids), -1)
        hidden = hidden + attended @ matrix(f"{layer}.attn_output").T
        x = norm(hidden, f"{layer}.ffn_norm")
        gate = x @ matrix(f"{layer}.ffn_gate").T
        inner = gate / (1 + np.exp(-gate)) * (x @ matrix(f"{layer}.ffn_up").T)
        hidden = hidden + inner @ matrix(f"{layer}.ffn_down").T
    return np.asarray(norm(hidden, "output_norm") @ embeddings.T)


def _rotate_pairs(x: Array, theta: float) -> Array:
    """Apply llama.cpp's rotary embedding, which rotates the pairs (2j, 2j + 1). x: (heads, length, head_dim)."""
    head_dim = x.shape[-1]
    angles = np.arange(x.shape[1])[:, None] * theta ** (-np.arange(0, head_dim, 2) / head_dim)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    even, odd = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1::2] = even * sin + odd * cos
    return out


def _causal_attention(q: Array, k: Array, v: Array) -> Array:
    group = q.shape[0] // k.shape[0]
    k, v = np.repeat(k, group, axis=0), np.repeat(v, group, axis=0)
    scores = q @ k.swapaxes(1, 2) / np.float32(math.sqrt(q.shape[-1]))
    future = np.triu(np.ones(scores.shape[1:], bool), 1)
    scores = np.where(future, np.float32(-np.inf), scores)
    return np.asarray(softmax(scores) @ v)
