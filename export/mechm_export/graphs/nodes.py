"""Editing of a graph's nodes and constants in memory."""

from __future__ import annotations

from collections.abc import Iterable

import onnx


def set_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replace a graph's nodes; some of the new ones may be nodes of the graph itself."""
    # Copies, since clearing the list deletes the graph's own nodes.
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def drop_unused_constants(model: onnx.ModelProto) -> None:
    """Remove initializers that no node reads, in place."""
    used = {name for node in model.graph.node for name in (*node.input, *captured_names(node))}
    used |= {output.name for output in model.graph.output}
    constants = model.graph.initializer
    for index in reversed(range(len(constants))):
        if constants[index].name not in used:
            del constants[index]


def captured_names(node: onnx.NodeProto) -> set[str]:
    """Names that the bodies of a node's branches or loops read from outside."""
    bodies = [body for a in node.attribute for body in ([a.g] if a.type == a.GRAPH else a.graphs)]
    read = {name for body in bodies for inner in body.node for name in (*inner.input, *captured_names(inner))}
    return read | {output.name for body in bodies for output in body.output}
