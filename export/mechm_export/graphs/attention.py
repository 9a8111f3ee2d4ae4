"""Attention in exported graphs: choosing torch's implementation, and the rewrite for onnxruntime's CPU kernels.

onnxruntime has fast CPU kernels for its own MultiHeadAttention and none for ONNX's Attention of opset 23.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch import nn

from mechm_export.graphs.files import MICROSOFT
from mechm_runtime.errors import VerificationError


@contextlib.contextmanager
def attention_implementation(module: nn.Module, implementation: str) -> Iterator[None]:
    """Switch the transformers models inside a module to an attention implementation, and back afterwards."""
    configs = {id(c): c for m in module.modules() if (c := getattr(m, "config", None)) is not None}
    previous = {key: getattr(config, "_attn_implementation", None) for key, config in configs.items()}
    selectable = [key for key, value in previous.items() if value is not None]
    for key in selectable:
        configs[key]._attn_implementation = implementation
    try:
        yield
    finally:
        for key in selectable:
            configs[key]._attn_implementation = previous[key]


def fuse_attention(model: onnx.ModelProto, n_heads: int) -> int:
    """Rewrite Attention (B, H, T, D) to MultiHeadAttention (B, T, H * D) in place; returns the number of rewrites.

    The transposes around the operator cancel with those the exporter wrote, in onnxruntime's own optimiser.
    Raises: VerificationError: an Attention has an attribute, input or output that MultiHeadAttention would lose.
    """
    graph = model.graph
    constants = {
        "mha_merge": np.array([0, 0, -1], np.int64),
        "mha_split": np.array([0, 0, n_heads, -1], np.int64),
    }
    boolean = {
        v.name for v in (*graph.value_info, *graph.input) if v.type.tensor_type.elem_type == onnx.TensorProto.BOOL
    }
    nodes: list[onnx.NodeProto] = []
    biases: dict[str, str] = {}
    count = 0
    for node in graph.node:
        if node.op_type != "Attention" or node.domain not in ("", "ai.onnx"):
            nodes.append(node)
            continue
        _check_fusible(node)
        name = f"mha_{count}"
        inputs = []
        for position in range(3):
            merged = f"{name}_{position}"
            nodes.append(helper.make_node("Transpose", [node.input[position]], [f"{merged}_t"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"{merged}_t", "mha_merge"], [merged]))
            inputs.append(merged)
        if len(node.input) > 3 and node.input[3]:
            mask = node.input[3]
            if mask not in biases:
                biases[mask] = f"{name}_bias" if mask in boolean else mask
                if mask in boolean:
                    constants |= {"mha_kept": np.array(0, np.float32), "mha_masked": np.array(-1e4, np.float32)}
                    nodes.append(helper.make_node("Where", [mask, "mha_kept", "mha_masked"], [biases[mask]]))
            inputs += ["", "", biases[mask]]
        attributes: dict[str, Any] = {"num_heads": n_heads}
        attributes.update({a.name: helper.get_attribute_value(a) for a in node.attribute if a.name == "scale"})
        nodes.append(
            helper.make_node("MultiHeadAttention", inputs, [f"{name}_out"], name=name, domain=MICROSOFT, **attributes)
        )
        nodes.append(helper.make_node("Reshape", [f"{name}_out", "mha_split"], [f"{name}_heads"]))
        nodes.append(helper.make_node("Transpose", [f"{name}_heads"], [node.output[0]], perm=[0, 2, 1, 3]))
        count += 1
    if count:
        graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
        del graph.node[:]
        graph.node.extend(nodes)
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return count


def _check_fusible(node: onnx.NodeProto) -> None:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    attributes.pop("scale", None)
    asked = sorted(name for name, value in attributes.items() if value)
    cached = [name for name in (*node.input[4:], *node.output[1:]) if name]
    if asked or cached:
        raise VerificationError(f"an Attention with {', '.join(asked + cached)} cannot be fused")
