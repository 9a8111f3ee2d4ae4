"""Each converter on a made-up file of toy size: what comes out equals what went in; a wrong conversion is caught."""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import h5py
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from mechm.model.expression import ExpressionNetwork
from mechm.weights import from_blip2, from_ctranslate2, from_file, from_folder, from_gguf, from_hdf5, from_onnx
from mechm.weights.check import largest_difference, require_close
from mechm_runtime.errors import VerificationError, WeightsError
from mechm_runtime.types import EMOTIONS


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


# --- The measure itself ---


def test_a_difference_above_the_limit_is_an_error() -> None:
    assert require_close("x", "y", 1e-5, 1e-4).largest_difference == 1e-5
    with pytest.raises(VerificationError, match="more than"):
        require_close("x", "y", 2e-4, 1e-4)
    with pytest.raises(VerificationError):
        require_close("x", "y", float("nan"), 1e-4)


def test_other_shapes_nan_and_nothing_are_errors() -> None:
    ones = np.ones((2, 2), np.float32)
    assert largest_difference("x", ones, ones + 0.5) == 0.5
    for other in (ones[:1], np.full((2, 2), np.nan, np.float32)):
        with pytest.raises(VerificationError):
            largest_difference("x", ones, other)
    with pytest.raises(VerificationError):
        largest_difference("x", ones[:0], ones[:0])


# --- Keras HDF5 ---


def keras_layer(kind: str, name: str, inputs: list[str], **config: Any) -> dict[str, Any]:
    nodes = [[[source, 0, 0, {}] for source in inputs]] if inputs else []
    return {"class_name": kind, "name": name, "config": {"name": name, **config}, "inbound_nodes": nodes}


def write_keras(path: Path, seed: int = 0) -> None:
    """A mini-Xception of two blocks over 20x20 faces with random weights, as Keras 2 writes it."""
    rng = np.random.default_rng(seed)
    layers: list[dict[str, Any]] = []
    weights: dict[str, dict[str, NDArray[np.float32]]] = {}

    def add(kind: str, name: str, inputs: list[str], arrays: dict[str, tuple[int, ...]], **config: Any) -> str:
        layers.append(keras_layer(kind, name, inputs, **config))
        weights[name] = {key: rng.normal(0, 0.2, shape).astype(np.float32) for key, shape in arrays.items()}
        return name

    def norm(name: str, inputs: str, width: int) -> str:
        add("BatchNormalization", name, [inputs], {}, epsilon=1e-3)
        for key in ("gamma", "beta", "moving_mean", "moving_variance"):
            weights[name][key] = rng.uniform(0.5, 1.5, width).astype(np.float32)
        return name

    def conv(name: str, inputs: str, shape: tuple[int, ...], stride: int, padding: str) -> str:
        sizes = {"kernel_size": list(shape[:2]), "strides": [stride, stride], "padding": padding}
        return add("Conv2D", name, [inputs], {"kernel": shape}, data_format="channels_last", **sizes)

    def separable(name: str, inputs: str, n_in: int, n_out: int) -> str:
        arrays = {"depthwise_kernel": (3, 3, n_in, 1), "pointwise_kernel": (1, 1, n_in, n_out)}
        sizes = {"kernel_size": [3, 3], "strides": [1, 1], "padding": "same"}
        return add("SeparableConv2D", name, [inputs], arrays, data_format="channels_last", **sizes)

    def relu(name: str, inputs: str) -> str:
        return add("Activation", name, [inputs], {}, activation="relu")

    x = add("InputLayer", "input_1", [], {}, batch_input_shape=[None, 20, 20, 1])
    x = relu("relu_1", norm("norm_1", conv("conv_1", x, (3, 3, 1, 4), 1, "valid"), 4))
    x = relu("relu_2", norm("norm_2", conv("conv_2", x, (3, 3, 4, 4), 1, "valid"), 4))
    for i, (n_in, n_out) in enumerate(((4, 6), (6, 8))):  # 16 is even and 8 is even; the second pools 8 to 4
        y = relu(f"relu_{i}a", norm(f"norm_{i}a", separable(f"separable_{i}a", x, n_in, n_out), n_out))
        y = norm(f"norm_{i}b", separable(f"separable_{i}b", y, n_out, n_out), n_out)
        shortcut = conv(f"conv_{i}s", x, (1, 1, n_in, n_out), 2, "same")
        y = add("MaxPooling2D", f"pool_{i}", [y], {}, pool_size=[3, 3], strides=[2, 2], padding="same")
        x = add("Add", f"add_{i}", [y, norm(f"norm_{i}s", shortcut, n_out)], {})
    x = conv("conv_head", x, (3, 3, 8, 7), 1, "same")
    weights[x]["bias"] = rng.uniform(-1, 1, 7).astype(np.float32)
    x = add("GlobalAveragePooling2D", "mean", [x], {})
    add("Activation", "predictions", [x], {}, activation="softmax")

    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Model", "config": {"layers": layers}})
        for layer, arrays in weights.items():
            group = file.create_group(f"model_weights/{layer}")
            group.attrs["weight_names"] = [f"{layer}/{key}:0".encode() for key in arrays]
            for key, array in arrays.items():
                group[f"{layer}/{key}:0"] = array


def test_keras_to_the_expression_network(source: Path, target: Path) -> None:
    write_keras(source / "toy.hdf5")
    check = from_hdf5.convert(source, target)
    assert check.largest_difference < 1e-4
    config = ExpressionNetwork.from_pretrained(target).config
    assert (config.image_size, config.stem_channels, config.block_channels) == (20, 4, (6, 8))


def test_each_class_lands_where_its_emotion_is(source: Path, target: Path) -> None:
    write_keras(source / "toy.hdf5")
    with h5py.File(source / "toy.hdf5", "r+") as file:  # the head sees nothing but its bias: 0, 1, … 6
        file["model_weights/conv_head/conv_head/kernel:0"][...] = 0
        file["model_weights/conv_head/conv_head/bias:0"][...] = np.arange(7)
    from_hdf5.convert(source, target)
    with torch.no_grad():
        logits = ExpressionNetwork.from_pretrained(target)(torch.zeros(1, 1, 20, 20))[0].tolist()
    fer = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]
    ours = dict(zip(EMOTIONS, logits, strict=True))
    words = {"angry": "anger", "happy": "joy", "sad": "sadness"}
    assert {words.get(name, name): float(i) for i, name in enumerate(fer)} == ours


def test_a_wrong_class_order_is_caught(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_keras(source / "toy.hdf5")
    build = from_hdf5.build_network

    def swapped(*arguments: Any) -> ExpressionNetwork:
        network = build(*arguments)
        with torch.no_grad():
            network.head.weight.copy_(network.head.weight.flip(0))
        return network

    monkeypatch.setattr(from_hdf5, "build_network", swapped)
    with pytest.raises(VerificationError, match="expression"):
        from_hdf5.convert(source, target)


def test_an_hdf5_file_of_something_else_is_refused(source: Path, target: Path) -> None:
    with h5py.File(source / "toy.hdf5", "w") as file:
        file.attrs["model_config"] = json.dumps({"config": {"layers": []}})
    with pytest.raises(WeightsError, match="expression network"):
        from_hdf5.convert(source, target)
    (source / "toy.hdf5").write_bytes(b"not HDF5")
    with pytest.raises(WeightsError, match="Keras"):
        from_hdf5.convert(source, target)


# --- CTranslate2 ---

D_MODEL, N_LAYERS, N_HEADS = 32, 2, 2
CT2_TYPES = {np.dtype(np.float32): 0, np.dtype(np.int8): 1, np.dtype(np.int16): 2, np.dtype(np.float16): 4}


def whisper_arrays(seed: int = 0) -> dict[str, NDArray[Any]]:
    """A Whisper of toy size under CTranslate2's names: query, key and value fused, the key's bias zero."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, NDArray[Any]] = {}

    def random(*shape: int) -> NDArray[np.float16]:
        return rng.normal(0, 0.2, shape).astype(np.float16)

    def linear(name: str, n_out: int, n_in: int) -> None:
        arrays[f"{name}/weight"], arrays[f"{name}/bias"] = random(n_out, n_in), random(n_out)

    def norm(name: str) -> None:
        arrays[f"{name}/gamma"], arrays[f"{name}/beta"] = 1 + random(D_MODEL), random(D_MODEL)

    d = D_MODEL
    arrays["encoder/conv1/weight"], arrays["encoder/conv1/bias"] = random(d, 80, 3), random(d)
    arrays["encoder/conv2/weight"], arrays["encoder/conv2/bias"] = random(d, d, 3), random(d)
    arrays["decoder/embeddings/weight"] = random(50, d)
    for side, positions in (("encoder", 20), ("decoder", 10)):
        arrays[f"{side}/num_heads"] = np.array(N_HEADS, np.int16)
        arrays[f"{side}/position_encodings/encodings"] = random(positions, d)
        norm(f"{side}/layer_norm")
        for i in range(N_LAYERS):
            layer = f"{side}/layer_{i}"
            linear(f"{layer}/self_attention/linear_0", 3 * d, d)
            arrays[f"{layer}/self_attention/linear_0/bias"][d : 2 * d] = 0
            linear(f"{layer}/self_attention/linear_1", d, d)
            norm(f"{layer}/self_attention/layer_norm")
            if side == "decoder":
                linear(f"{layer}/attention/linear_0", d, d)
                linear(f"{layer}/attention/linear_1", 2 * d, d)
                arrays[f"{layer}/attention/linear_1/bias"][:d] = 0
                linear(f"{layer}/attention/linear_2", d, d)
                norm(f"{layer}/attention/layer_norm")
            linear(f"{layer}/ffn/linear_0", 4 * d, d)
            linear(f"{layer}/ffn/linear_1", d, 4 * d)
            norm(f"{layer}/ffn/layer_norm")
    return arrays


def write_ctranslate2(folder: Path, arrays: Mapping[str, NDArray[Any]], specification: bytes = b"WhisperSpec") -> None:
    def name(text: bytes) -> bytes:
        return struct.pack("<H", len(text) + 1) + text + b"\0"

    blob = struct.pack("<I", 6) + name(specification) + struct.pack("<II", 3, len(arrays))
    for key, array in arrays.items():
        blob += name(key.encode()) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        blob += struct.pack("<BI", CT2_TYPES[array.dtype], array.nbytes) + array.tobytes()
    (folder / "model.bin").write_bytes(blob)
    suppressed = {"suppress_ids": [1, 2, 50256], "suppress_ids_begin": [220], "alignment_heads": [[1, 0]]}
    (folder / "config.json").write_text(json.dumps(suppressed))
    vocabulary = {"<|endoftext|>": 0, "a": 1}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<|endoftext|>"}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))


def test_ctranslate2_to_whisper(source: Path, target: Path) -> None:
    from transformers import WhisperForConditionalGeneration

    arrays = whisper_arrays()
    write_ctranslate2(source, arrays)
    check = from_ctranslate2.convert(source, target)
    assert check.largest_difference < 1e-4
    model = WhisperForConditionalGeneration.from_pretrained(target)
    assert model.dtype == torch.float32
    assert (model.config.encoder_layers, model.config.encoder_attention_heads) == (N_LAYERS, N_HEADS)
    key = model.model.encoder.layers[1].self_attn.k_proj.weight.detach().numpy()
    np.testing.assert_array_equal(key, arrays["encoder/layer_1/self_attention/linear_0/weight"][32:64])
    assert model.generation_config.suppress_tokens == [1, 2]


def test_a_whisper_tensor_in_the_wrong_place_is_caught(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ctranslate2(source, whisper_arrays())
    build = from_ctranslate2.build_model

    def swapped(*arguments: Any) -> Any:
        model = build(*arguments)
        attention = model.model.encoder.layers[0].self_attn
        attention.q_proj, attention.k_proj = attention.q_proj, nn.Linear(D_MODEL, D_MODEL, bias=False)
        return model

    monkeypatch.setattr(from_ctranslate2, "build_model", swapped)
    with pytest.raises(VerificationError, match="k_proj"):
        from_ctranslate2.convert(source, target)


def test_a_consistently_wrong_map_is_caught_by_the_numpy_encoder(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ctranslate2(source, whisper_arrays())
    right = from_ctranslate2.tensor_map

    def queries_and_values_swapped(variables: Any) -> Any:
        swap = {"q": "v", "v": "q"}
        for name, array in right(variables):
            stem, dot, rest = name.partition(".self_attn.")
            wrong = f"{stem}{dot}{swap.get(rest[0], rest[0])}{rest[1:]}" if dot and rest[1:2] == "_" else name
            yield wrong, array

    monkeypatch.setattr(from_ctranslate2, "tensor_map", queries_and_values_swapped)
    with pytest.raises(VerificationError, match="audio"):
        from_ctranslate2.convert(source, target)


def test_a_key_with_a_bias_is_no_whisper(source: Path, target: Path) -> None:
    arrays = whisper_arrays()
    arrays["encoder/layer_0/self_attention/linear_0/bias"][D_MODEL] = 1
    write_ctranslate2(source, arrays)
    with pytest.raises(WeightsError, match="key"):
        from_ctranslate2.convert(source, target)


@pytest.mark.parametrize("kept", [0, 3, 30, 2000, -1])
def test_a_cut_ctranslate2_file_is_an_error(source: Path, kept: int) -> None:
    write_ctranslate2(source, whisper_arrays())
    path = source / "model.bin"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError):
        from_ctranslate2.read_variables(path)


def test_a_ctranslate2_array_that_claims_too_much_is_an_error(source: Path) -> None:
    path = source / "model.bin"
    header = struct.pack("<IH12sII", 6, 12, b"WhisperSpec\0", 3, 1)
    variable = struct.pack("<H2sB2IBI", 2, b"w\0", 2, 2**31, 2**31, 4, 2**32 - 1)
    path.write_bytes(header + variable)
    with pytest.raises(WeightsError, match="does not fit"):
        from_ctranslate2.read_variables(path)


def test_another_ctranslate2_model_is_refused(source: Path) -> None:
    write_ctranslate2(source, whisper_arrays(), specification=b"TransformerSpec")
    with pytest.raises(WeightsError, match="TransformerSpec"):
        from_ctranslate2.read_variables(source / "model.bin")


# --- ONNX: a ViT written with plain torch modules under transformers 4's names, exported as the original was ---


class LayerScale(nn.Module):
    """DINOv2's layer scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.rand(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.lambda1


class SelfAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax(self.query(x) @ self.key(x).transpose(1, 2) / x.shape[-1] ** 0.5, -1)
        return weights @ self.value(x)


class Output(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(x)


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.output = SelfAttention(width), Output(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.attention(x))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attention, self.mlp = Attention(width), Mlp(width)
        self.layer_scale1, self.layer_scale2 = LayerScale(width), LayerScale(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.layer_scale1(self.attention(self.norm1(x)))
        return x + self.layer_scale2(self.mlp(self.norm2(x)))


class PatchEmbeddings(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, 14, 14)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.projection(images).flatten(2).transpose(1, 2)


class Embeddings(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.randn(1, 5, width))
        self.patch_embeddings = PatchEmbeddings(width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embeddings(images)
        # The original interpolates the patches' positions between these reshapes, so they lie apart in the graph.
        grid = self.position_embeddings[:, 1:].reshape(1, 2, patches.shape[1] // 2, -1)
        positions = torch.cat([self.position_embeddings[:, :1], grid.reshape(1, patches.shape[1], -1)], 1)
        return torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], 1) + positions


class Encoder(nn.Module):
    def __init__(self, width: int, n_layers: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(width) for _ in range(n_layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layer:
            x = layer(x)
        return x


class Backbone(nn.Module):
    def __init__(self, width: int, n_layers: int) -> None:
        super().__init__()
        self.embeddings, self.encoder = Embeddings(width), Encoder(width, n_layers)
        self.layernorm = nn.LayerNorm(width, 1e-6)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layernorm(self.encoder(self.embeddings(images)))


class Saliency(nn.Module):
    def __init__(self, width: int = 16, n_layers: int = 2) -> None:
        super().__init__()
        self.backbone, self.decoder = Backbone(width, n_layers), nn.Linear(width, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.backbone(images))


def write_onnx(path: Path) -> Saliency:
    torch.manual_seed(0)
    model = Saliency().eval()
    for parameter in model.parameters():  # the exporter merges equal constants, such as two untrained norms
        nn.init.normal_(parameter, std=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the source was written by this exporter
        torch.onnx.export(
            model,
            (torch.zeros(1, 3, 28, 28),),
            path,
            dynamo=False,
            opset_version=14,
            input_names=["input_image"],
            dynamic_axes={"input_image": {0: "batch_size"}},
        )
    return model


def test_onnx_to_dinov2(source: Path, target: Path) -> None:
    from transformers import Dinov2Model

    saliency = write_onnx(source / "toy.onnx")
    check = from_onnx.convert(source, target, head_dim=16)
    assert check.largest_difference < 1e-4
    model = Dinov2Model.from_pretrained(target).eval()
    images = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(model(images).last_hidden_state, saliency.backbone(images), atol=1e-4, rtol=0)


def test_a_vit_with_other_heads_is_caught(source: Path, target: Path) -> None:
    write_onnx(source / "toy.onnx")
    with pytest.raises(VerificationError, match="scene"):
        from_onnx.convert(source, target, head_dim=8)


def test_an_onnx_graph_without_a_backbone_is_refused(source: Path, target: Path) -> None:
    info = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", info[:1], info[1:])
    onnx.save(onnx.helper.make_model(graph), source / "toy.onnx")
    with pytest.raises(WeightsError, match="not a Dinov2"):
        from_onnx.convert(source, target)


# --- GGUF ---

LLAMA = {"hidden": 64, "layers": 2, "heads": 2, "kv_heads": 1, "inner": 96}


def gpt2_byte_tokens() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def write_gguf(path: Path, seed: int = 0, architecture: str = "llama") -> None:
    rng = np.random.default_rng(seed)
    size = LLAMA
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *gpt2_byte_tokens(), "he"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(size["layers"])
    writer.add_context_length(128)
    writer.add_embedding_length(size["hidden"])
    writer.add_feed_forward_length(size["inner"])
    writer.add_head_count(size["heads"])
    writer.add_head_count_kv(size["kv_heads"])
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(size["hidden"] // size["heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)

    def matrix(name: str, n_out: int, n_in: int, kind: gguf.GGMLQuantizationType) -> None:
        values = rng.normal(0, 0.3, (n_out, n_in)).astype(np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", rng.uniform(0.5, 1.5, size["hidden"]).astype(np.float32))

    q8, q4 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1
    kv_width = size["hidden"] // size["heads"] * size["kv_heads"]
    matrix("token_embd", len(tokens), size["hidden"], q8)
    for i in range(size["layers"]):
        for name, n_out, n_in in (
            ("attn_q", size["hidden"], size["hidden"]),
            ("attn_k", kv_width, size["hidden"]),
            ("attn_v", kv_width, size["hidden"]),
            ("attn_output", size["hidden"], size["hidden"]),
            ("ffn_gate", size["inner"], size["hidden"]),
            ("ffn_up", size["inner"], size["hidden"]),
            ("ffn_down", size["hidden"], size["inner"]),
        ):
            matrix(f"blk.{i}.{name}", n_out, n_in, q4)
        norm(f"blk.{i}.attn_norm")
        norm(f"blk.{i}.ffn_norm")
    norm("output_norm")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_to_llama(source: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    write_gguf(source / "toy.gguf")
    check = from_gguf.convert(source, target)
    assert check.largest_difference < 1e-3
    model = AutoModelForCausalLM.from_pretrained(target)
    assert model.dtype == torch.bfloat16
    assert model.config.num_key_value_heads == 1
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(target)
    assert tokenizer.decode(tokenizer.encode("hey, là")) == "hey, là"
    assert json.loads((target / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_rows_left_interleaved_are_caught(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(source / "toy.gguf")
    monkeypatch.setattr(from_gguf, "deinterleave", lambda rows, n_heads: rows)
    with pytest.raises(VerificationError, match="llm"):
        from_gguf.convert(source, target)


def test_deinterleave_takes_pairs_apart() -> None:
    rows = np.arange(12, dtype=np.float32)[:, None]  # two heads of six rows
    taken = from_gguf.deinterleave(rows, 2)[:, 0].tolist()
    assert taken == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_another_gguf_architecture_is_refused(source: Path, target: Path) -> None:
    write_gguf(source / "toy.gguf", architecture="falcon")
    with pytest.raises(WeightsError, match="falcon"):
        from_gguf.convert(source, target)


def test_a_file_that_is_not_gguf_is_refused(source: Path, target: Path) -> None:
    (source / "toy.gguf").write_bytes(b"not GGUF" * 100)
    with pytest.raises(WeightsError, match="GGUF"):
        from_gguf.convert(source, target)


# --- BLIP-2, plain folders and single graphs ---


def test_blip2_to_its_vision_model(source: Path, target: Path) -> None:
    from transformers import Blip2Config, Blip2Model, Blip2VisionModel

    torch.manual_seed(0)
    narrow = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    config = Blip2Config(
        vision_config={**narrow, "image_size": 28, "patch_size": 14},
        qformer_config={**narrow, "encoder_hidden_size": 32, "vocab_size": 20},
        text_config={
            "model_type": "opt",
            "vocab_size": 20,
            "hidden_size": 32,
            "ffn_dim": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "word_embed_proj_dim": 32,
        },
    )
    whole = Blip2Model(config).eval()
    whole.save_pretrained(source)
    assert from_blip2.convert(source, target).largest_difference == 0
    vision = Blip2VisionModel.from_pretrained(target).eval()
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        expected = whole.vision_model(images).last_hidden_state
        assert torch.equal(vision(images).last_hidden_state, expected)


def test_a_checkpoint_without_a_vision_model_is_refused(source: Path, target: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"text.weight": np.ones(2, np.float32)}, source / "model.safetensors")
    (source / "config.json").write_text('{"vision_config": {}}')
    with pytest.raises(WeightsError, match="vision_model"):
        from_blip2.convert(source, target)


def test_a_plain_folder_is_copied_with_its_bytes(source: Path, target: Path) -> None:
    from safetensors.numpy import load_file, save_file

    save_file({"w": np.arange(6, dtype=np.float32)}, source / "model.safetensors")
    (source / "config.json").write_text("{}")
    check = from_folder.convert(source, target)
    assert check.largest_difference == 0
    assert load_file(target / "model.safetensors")["w"].tolist() == [0, 1, 2, 3, 4, 5]
    assert (target / "config.json").read_text() == "{}"


def test_a_truncated_or_absent_safetensors_file_is_refused(source: Path, target: Path) -> None:
    from safetensors.numpy import save_file

    (source / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="no safetensors"):
        from_folder.convert(source, target)
    save_file({"w": np.arange(6, dtype=np.float32)}, source / "model.safetensors")
    whole = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(whole[:-4])
    with pytest.raises(WeightsError, match="not a whole"):
        from_folder.convert(source, target)


def write_graph(path: Path) -> bytes:
    tensors = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "toy", tensors[:1], tensors[1:])
    onnx.save(onnx.helper.make_model(graph), path)
    return path.read_bytes()


def test_a_graph_that_is_used_as_it_is_keeps_its_bytes(source: Path, target: Path) -> None:
    graph = write_graph(source / "toy_2023.onnx")
    assert from_file.convert(source, target).largest_difference == 0
    assert [path.name for path in target.iterdir()] == ["model.onnx"]
    assert (target / "model.onnx").read_bytes() == graph


def test_a_cut_absent_or_ambiguous_graph_is_refused(source: Path, target: Path) -> None:
    with pytest.raises(WeightsError, match="one ONNX file"):
        from_file.convert(source, target)
    graph = write_graph(source / "toy.onnx")
    for spoilt in (b"", b"no graph", graph[: len(graph) // 2]):
        (source / "toy.onnx").write_bytes(spoilt)
        with pytest.raises(WeightsError, match="not a whole ONNX graph"):
            from_file.convert(source, target)
    (source / "other.onnx").write_bytes(graph)
    with pytest.raises(WeightsError, match="one ONNX file"):
        from_file.convert(source, target)
    assert not list(target.iterdir())
