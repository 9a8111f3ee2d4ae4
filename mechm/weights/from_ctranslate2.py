"""Converts a Whisper model in a CTranslate2 `model.bin` to a plain transformers folder, without ctranslate2.

The file is a list of named arrays (format 6: name, shape, type, bytes, little-endian). Half precision becomes float32
exactly. Two checks are made: every array of the file equals its tensor in the written folder, and an encoder in numpy
on the file's own arrays gives the same hidden states as transformers' encoder.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from mechm.weights.check import Check, largest_difference, require_close
from mechm.weights.untyped import import_untyped
from mechm_runtime.errors import VerificationError, WeightsError
from mechm_runtime.system.arrays import softmax

# Whisper's English-only vocabulary (openai/whisper, `tokenizer.py`, GPT-2's 50,257 tokens with <|endoftext|> last).
END_OF_TEXT = 50256
START_OF_TRANSCRIPT = 50257
START_OF_PREVIOUS = 50360
NO_TIMESTAMPS = 50362

ATOL = 1e-3  # float32 sums in another order, hidden states of deviation 1; 1e-5 was measured on the shipped weights
MAX_VARIABLES = 10_000
MAX_DIMENSIONS = 8

Array = NDArray[np.float32]
_DTYPES: dict[int, type[np.generic]] = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def convert(source: Path, target: Path) -> Check:
    """Convert `model.bin`, `config.json` and `tokenizer.json` in `source` into the folder `target`.

    Raises: WeightsError: not an English-only Whisper in CTranslate2's format 6. VerificationError: outputs differ.
    """
    transformers = import_untyped("transformers")
    variables = read_variables(source / "model.bin")
    suppressed = json.loads((source / "config.json").read_text(encoding="utf-8"))
    try:
        model = build_model(variables, suppressed)
    except (KeyError, ValueError) as error:
        raise WeightsError(f"the CTranslate2 file is not a Whisper model: {error}") from error
    model.save_pretrained(target)
    end = "<|endoftext|>"
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(source / "tokenizer.json"), bos_token=end, eos_token=end, unk_token=end, pad_token=end
    )
    tokenizer.save_pretrained(target)
    transformers.WhisperFeatureExtractor(feature_size=model.config.num_mel_bins).save_pretrained(target)

    reloaded = transformers.WhisperForConditionalGeneration.from_pretrained(target, dtype=torch.float32).eval()
    _check_tensors(variables, reloaded.state_dict())
    n_frames = 2 * reloaded.config.max_source_positions  # the second convolution halves them
    mel = np.random.default_rng(0).standard_normal((reloaded.config.num_mel_bins, n_frames), np.float32)
    with torch.no_grad():
        actual = reloaded.model.encoder(torch.from_numpy(mel)[None]).last_hidden_state[0].numpy()
    difference = largest_difference("audio hidden states", run_encoder(variables, mel), actual)
    return require_close("audio", "the source's arrays, and its encoder in numpy", difference, ATOL)


# --- Reading ---


def read_variables(path: Path) -> dict[str, NDArray[np.generic]]:
    """Read every array of a CTranslate2 file by name; aliases (tied weights) are left out.

    Raises: WeightsError: another format or model, or a truncated file.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            version, specification, revision = _uint32(file), _name(file), _uint32(file)
            if (version, specification, revision) != (6, "WhisperSpec", 3):
                raise WeightsError(
                    f"{path.name} is {specification!r}, format {version}, revision {revision}; "
                    "only WhisperSpec, format 6, revision 3 can be read"
                )
            n_variables = _uint32(file)
            if n_variables > MAX_VARIABLES:
                raise WeightsError(f"{path.name} claims {n_variables} arrays")
            return dict(_variable(file, size) for _ in range(n_variables))
    except (struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
        raise WeightsError(f"{path.name} is cut short or not a CTranslate2 file: {error}") from error


def _uint32(file: BinaryIO) -> int:
    return int(struct.unpack("<I", file.read(4))[0])


def _name(file: BinaryIO) -> str:
    (length,) = struct.unpack("<H", file.read(2))
    return file.read(length).rstrip(b"\0").decode()


def _variable(file: BinaryIO, file_bytes: int) -> tuple[str, NDArray[np.generic]]:
    name = _name(file)
    (n_dimensions,) = struct.unpack("<B", file.read(1))
    if n_dimensions > MAX_DIMENSIONS:
        raise ValueError(f"{name} has {n_dimensions} dimensions")
    shape = struct.unpack(f"<{n_dimensions}I", file.read(4 * n_dimensions))
    type_id, n_bytes = struct.unpack("<BI", file.read(5))
    dtype = np.dtype(_DTYPES[type_id])
    # Shape, byte count and file size are checked before anything is allocated.
    if math.prod(shape) * dtype.itemsize != n_bytes or file.tell() + n_bytes > file_bytes:
        raise ValueError(f"{name} of shape {shape} does not fit its {n_bytes} bytes")
    return name, np.frombuffer(file.read(n_bytes), dtype).reshape(shape)


# --- Mapping ---


def tensor_map(variables: Mapping[str, NDArray[np.generic]]) -> Iterator[tuple[str, Array]]:
    """Yield the name in transformers and the float32 array of every weight in the file.

    Query, key and value are fused in one matrix; Whisper's key has no bias, so the fused bias must be zero there.
    Raises: KeyError: an array is missing. ValueError: a key has a bias.
    """

    def value(name: str) -> Array:
        return variables[name].astype(np.float32)

    def both(target: str, source: str, names: tuple[str, str] = ("weight", "bias")) -> Iterator[tuple[str, Array]]:
        yield f"{target}.weight", value(f"{source}/{names[0]}")
        yield f"{target}.bias", value(f"{source}/{names[1]}")

    def norm(target: str, source: str) -> Iterator[tuple[str, Array]]:
        return both(target, source, ("gamma", "beta"))

    def fused(target: str, source: str, projections: str) -> Iterator[tuple[str, Array]]:
        weights = np.split(value(f"{source}/weight"), len(projections))
        biases = np.split(value(f"{source}/bias"), len(projections))
        for letter, weight, bias in zip(projections, weights, biases, strict=True):
            yield f"{target}.{letter}_proj.weight", weight
            if letter != "k":
                yield f"{target}.{letter}_proj.bias", bias
            elif bias.any():
                raise ValueError(f"{source} has a bias on its key, which Whisper has not")

    yield from both("model.encoder.conv1", "encoder/conv1")
    yield from both("model.encoder.conv2", "encoder/conv2")
    yield "model.decoder.embed_tokens.weight", value("decoder/embeddings/weight")
    for side in ("encoder", "decoder"):
        yield f"model.{side}.embed_positions.weight", value(f"{side}/position_encodings/encodings")
        yield from norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        for i in range(n_layers(variables, side)):
            target, source = f"model.{side}.layers.{i}", f"{side}/layer_{i}"
            yield from fused(f"{target}.self_attn", f"{source}/self_attention/linear_0", "qkv")
            yield from both(f"{target}.self_attn.out_proj", f"{source}/self_attention/linear_1")
            yield from norm(f"{target}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
            if side == "decoder":
                yield from fused(f"{target}.encoder_attn", f"{source}/attention/linear_0", "q")
                yield from fused(f"{target}.encoder_attn", f"{source}/attention/linear_1", "kv")
                yield from both(f"{target}.encoder_attn.out_proj", f"{source}/attention/linear_2")
                yield from norm(f"{target}.encoder_attn_layer_norm", f"{source}/attention/layer_norm")
            yield from both(f"{target}.fc1", f"{source}/ffn/linear_0")
            yield from both(f"{target}.fc2", f"{source}/ffn/linear_1")
            yield from norm(f"{target}.final_layer_norm", f"{source}/ffn/layer_norm")


def n_layers(variables: Mapping[str, NDArray[np.generic]], side: str) -> int:
    """Count the layers of the encoder or the decoder."""
    prefix = f"{side}/layer_"
    numbers = (name.removeprefix(prefix).split("/")[0] for name in variables if name.startswith(prefix))
    return 1 + max(int(number) for number in numbers if number.isdigit())


def build_model(variables: Mapping[str, NDArray[np.generic]], suppressed: Mapping[str, Any]) -> Any:
    """Build a `WhisperForConditionalGeneration` with the file's weights in float32.

    suppressed: CTranslate2's `config.json` (`suppress_ids`, `suppress_ids_begin`, `alignment_heads`).
    Raises: KeyError, ValueError: an array is missing or misshapen.
    """
    transformers = import_untyped("transformers")
    d_model, n_mels, _ = variables["encoder/conv1/weight"].shape
    vocabulary = variables["decoder/embeddings/weight"].shape[0]
    config = transformers.WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=n_mels,
        d_model=d_model,
        encoder_layers=n_layers(variables, "encoder"),
        decoder_layers=n_layers(variables, "decoder"),
        encoder_attention_heads=int(variables["encoder/num_heads"]),
        decoder_attention_heads=int(variables["decoder/num_heads"]),
        encoder_ffn_dim=variables["encoder/layer_0/ffn/linear_0/weight"].shape[0],
        decoder_ffn_dim=variables["decoder/layer_0/ffn/linear_0/weight"].shape[0],
        max_source_positions=variables["encoder/position_encodings/encodings"].shape[0],
        max_target_positions=variables["decoder/position_encodings/encodings"].shape[0],
        pad_token_id=END_OF_TEXT if vocabulary > END_OF_TEXT else 0,
        bos_token_id=START_OF_TRANSCRIPT,
        eos_token_id=END_OF_TEXT,
        decoder_start_token_id=START_OF_TRANSCRIPT,
    )
    model = transformers.WhisperForConditionalGeneration(config).eval()
    state = {name: torch.from_numpy(np.array(array)) for name, array in tensor_map(variables)}
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]  # tied
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=START_OF_TRANSCRIPT,
        eos_token_id=END_OF_TEXT,
        pad_token_id=END_OF_TEXT,
        decoder_start_token_id=START_OF_TRANSCRIPT,
        suppress_tokens=[token for token in suppressed["suppress_ids"] if token != END_OF_TEXT],
        begin_suppress_tokens=suppressed["suppress_ids_begin"],
        alignment_heads=suppressed["alignment_heads"],
        is_multilingual=False,
        no_timestamps_token_id=NO_TIMESTAMPS,
        prev_sot_token_id=START_OF_PREVIOUS,
        max_length=config.max_target_positions,
        return_timestamps=False,
    )
    return model


# --- The reference ---


def _check_tensors(variables: Mapping[str, NDArray[np.generic]], state: Mapping[str, torch.Tensor]) -> None:
    # Converting float16 to float32 is exact, so every difference is an error.
    seen = 0
    for name, expected in tensor_map(variables):
        difference = largest_difference(name, expected, state[name].numpy())
        require_close(name, "the CTranslate2 file", difference, 0.0)
        seen += 1
    n_unchecked = len(state) - 1 - seen  # the tied output matrix has no array of its own
    if n_unchecked:
        raise VerificationError(f"{n_unchecked} tensors of the written Whisper have no source")


def run_encoder(variables: Mapping[str, NDArray[np.generic]], mel: Array) -> Array:
    """Run the Whisper encoder in numpy on the file's fused arrays.

    mel: float32 (n_mels, n_frames), n_frames twice the number of positions.
    Returns: float32 (n_frames // 2, d_model).
    """

    def value(name: str) -> Array:
        return variables[name].astype(np.float32)

    def linear(x: Array, name: str) -> Array:
        return np.asarray(x @ value(f"{name}/weight").T + value(f"{name}/bias"))

    def norm(x: Array, name: str) -> Array:
        deviation = np.sqrt(x.var(-1, keepdims=True) + np.float32(1e-5))
        return np.asarray((x - x.mean(-1, keepdims=True)) / deviation * value(f"{name}/gamma") + value(f"{name}/beta"))

    hidden = _gelu(_conv(mel, value("encoder/conv1/weight"), value("encoder/conv1/bias"), stride=1))
    hidden = _gelu(_conv(hidden, value("encoder/conv2/weight"), value("encoder/conv2/bias"), stride=2)).T
    hidden = hidden + value("encoder/position_encodings/encodings")
    n_heads = int(variables["encoder/num_heads"])
    for i in range(n_layers(variables, "encoder")):
        layer = f"encoder/layer_{i}"
        fused = linear(norm(hidden, f"{layer}/self_attention/layer_norm"), f"{layer}/self_attention/linear_0")
        q, k, v = np.split(fused, 3, axis=-1)
        attended = _attention(q, k, v, n_heads)
        hidden = hidden + linear(attended, f"{layer}/self_attention/linear_1")
        inner = _gelu(linear(norm(hidden, f"{layer}/ffn/layer_norm"), f"{layer}/ffn/linear_0"))
        hidden = hidden + linear(inner, f"{layer}/ffn/linear_1")
    return norm(hidden, "encoder/layer_norm")


def _conv(x: Array, weight: Array, bias: Array, stride: int) -> Array:
    """Convolve x (in, n) with weight (out, in, 3), one zero of padding per side -> (out, ceil(n / stride))."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (1, 1))), 3, axis=1)[:, ::stride]
    return np.asarray(np.tensordot(weight, windows, axes=((1, 2), (0, 2))) + bias[:, None])


def _attention(q: Array, k: Array, v: Array, n_heads: int) -> Array:
    head_dim = q.shape[-1] // n_heads
    out = np.empty_like(q)
    for head in range(n_heads):
        part = slice(head * head_dim, (head + 1) * head_dim)
        scores = q[:, part] @ k[:, part].T / np.float32(math.sqrt(head_dim))
        out[:, part] = softmax(scores) @ v[:, part]
    return out


def _gelu(x: Array) -> Array:
    # numpy has no erf: Abramowitz and Stegun 7.1.26 in float64, accurate to 1.5e-7.
    z = np.abs(x.astype(np.float64)) / math.sqrt(2)
    t = 1 / (1 + 0.3275911 * z)
    polynomial = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.sign(x) * (1 - polynomial * np.exp(-z * z))
    return np.asarray(0.5 * x * (1 + erf), np.float32)
