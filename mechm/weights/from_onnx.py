"""Converts the ViT in an ONNX graph that `torch.onnx` exported from transformers' Dinov2 to a `Dinov2Model` folder.

The graph keeps the module names: biases and norms as initializers `backbone.…`, matrices as anonymous constants of
`MatMul` nodes whose names are the module paths. Layers after the backbone (here a saliency decoder) are left out. The
check runs the graph's own backbone in onnxruntime on random images.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mechm.weights.check import Check, largest_difference, require_close
from mechm.weights.untyped import import_untyped
from mechm_runtime.errors import MissingExtraError, WeightsError
from mechm_runtime.system.telemetry import import_onnxruntime

HEAD_DIM = 64
"""Every DINOv2 size has heads of 64 (Oquab et al. 2023, table 17); the graph does not contain the number of heads."""

ATOL = 1e-3  # 12 layers of float32 sums in another order, deviation 2; 1e-5 was measured on the shipped weights

# ImageNet's mean and deviation, which facebook/dinov2-small uses too.
_PREPROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "do_convert_rgb": True,
}

_TRANSFORMERS_NAMES = (
    (".attention.attention.query.", ".attention.q_proj."),
    (".attention.attention.key.", ".attention.k_proj."),
    (".attention.attention.value.", ".attention.v_proj."),
    (".attention.output.dense.", ".attention.o_proj."),
)
"""Names in the graph's version of transformers (4.x) and in 5.1x."""


def convert(source: Path, target: Path, *, head_dim: int = HEAD_DIM) -> Check:
    """Convert the one `*.onnx` file in `source` into the folder `target`.

    Raises: WeightsError: the graph is not a Dinov2 backbone. VerificationError: outputs differ.
        MissingExtraError: onnxruntime is missing.
    """
    import onnx

    try:
        graph_model = onnx.load(next(iter(sorted(source.glob("*.onnx")))))
        tensors = read_backbone(graph_model)
    except (IndexError, KeyError, ValueError, StopIteration) as error:
        raise WeightsError(f"the ONNX graph is not a Dinov2 backbone: {error}") from error
    model = build_model(tensors, head_dim)
    model.save_pretrained(target)
    (target / "preprocessor_config.json").write_text(json.dumps(_PREPROCESSOR, indent=2) + "\n", encoding="utf-8")

    image_size = graph_model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    images = np.random.default_rng(0).standard_normal((2, 3, image_size, image_size)).astype(np.float32)
    expected = run_backbone(graph_model, images)
    with torch.no_grad():
        reloaded = import_untyped("transformers").Dinov2Model.from_pretrained(target).eval()
        actual = reloaded(torch.from_numpy(images)).last_hidden_state.numpy()
    difference = largest_difference("scene hidden states", expected, actual)
    return require_close("scene", "the source graph in onnxruntime", difference, ATOL)


def read_backbone(model: Any) -> dict[str, NDArray[np.float32]]:
    """Read the backbone's tensors of an ONNX model, by the module names of the graph's version of transformers.

    Raises: ValueError: the position embeddings cannot be identified.
    """
    from onnx import numpy_helper

    initializers = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    prefix = "backbone."
    tensors = {name.removeprefix(prefix): array for name, array in initializers.items() if name.startswith(prefix)}
    for node in model.graph.node:
        if node.op_type != "MatMul" or not node.name.startswith("/backbone/"):
            continue
        constants = [name for name in node.input if name in initializers]
        if constants:
            module = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            # `x @ W` in the graph, `x @ weight.T` in torch.
            tensors[f"{module}.weight"] = initializers[constants[0]].T
    tensors["embeddings.position_embeddings"] = _position_embeddings(
        initializers, tensors["embeddings.cls_token"].shape[-1]
    )
    # Patches are only masked in training, so the graph has no mask token; zeros are Dinov2's initial value.
    tensors["embeddings.mask_token"] = np.zeros_like(tensors["embeddings.cls_token"][0])
    return tensors


def _position_embeddings(initializers: dict[str, NDArray[np.float32]], hidden_size: int) -> NDArray[np.float32]:
    """Join the positions of the class token and of the patches, two unnamed constants (1, n, hidden_size)."""
    candidates = [
        array
        for name, array in initializers.items()
        if name.startswith("onnx::") and array.ndim == 3 and array.shape[0] == 1 and array.shape[2] == hidden_size
    ]
    class_position = [array for array in candidates if array.shape[1] == 1]
    patch_positions = [array for array in candidates if array.shape[1] > 1]
    if len(class_position) != 1 or len(patch_positions) != 1:
        raise ValueError(f"{len(class_position)} class and {len(patch_positions)} patch position tables, not one each")
    return np.concatenate([class_position[0], patch_positions[0]], axis=1)


def build_model(tensors: dict[str, NDArray[np.float32]], head_dim: int) -> Any:
    """Build a `Dinov2Model` with these tensors, in evaluation mode.

    Raises: WeightsError: a tensor is missing, unexpected or of another shape.
    """
    transformers = import_untyped("transformers")
    projection = tensors["embeddings.patch_embeddings.projection.weight"]
    hidden_size, _, patch_size, _ = projection.shape
    n_patches = tensors["embeddings.position_embeddings"].shape[1] - 1
    fc1 = tensors["encoder.layer.0.mlp.fc1.weight"]
    config = transformers.Dinov2Config(
        hidden_size=hidden_size,
        num_hidden_layers=1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.layer.")),
        num_attention_heads=hidden_size // head_dim,
        mlp_ratio=fc1.shape[0] // hidden_size,
        image_size=round(n_patches**0.5) * patch_size,
        patch_size=patch_size,
        use_swiglu_ffn=False,
    )
    model = transformers.Dinov2Model(config).eval()
    state = {_rename(name): torch.from_numpy(np.array(array, np.float32)) for name, array in tensors.items()}
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise WeightsError(f"the ONNX graph does not fit Dinov2: {error}") from error
    return model


def _rename(name: str) -> str:
    for old, new in _TRANSFORMERS_NAMES:
        name = name.replace(old, new)
    return name


def run_backbone(model: Any, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute the backbone's last hidden states with the source graph.

    images: float32 (batch, 3, height, width), normalised.
    Returns: float32 (batch, 1 + n_patches, hidden_size).
    Raises: MissingExtraError: onnxruntime is missing.
    """
    try:
        onnxruntime = import_onnxruntime()
    except ImportError as error:
        raise MissingExtraError("onnxruntime", extra="cpu") from error
    from onnx import TensorProto, helper

    output = [node for node in model.graph.node if node.name.startswith("/backbone/layernorm/")][-1].output[0]
    probe = type(model)()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run([output], {session.get_inputs()[0].name: images})[0], np.float32)
