"""ONNX graphs that optimum-cli or others wrote: looked through before anything loads them, and described as a part.

They come from outside. Refused are links, weights outside the folder, weights that reach beyond their file, and graphs
that run in a circle. The graph as it was given is what its lower precisions are compared with.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
import torch
from onnx import helper
from torch import nn

from mechm_export.encoders.axes import Axes
from mechm_export.encoders.source import CONFIG, read_config
from mechm_export.encoders.trials import PART, word_inputs
from mechm_export.graphs.files import tensor_bytes
from mechm_export.graphs.part import ExportPart, Int8Recipe
from mechm_export.precision.half import QUANTIZED
from mechm_runtime.bundle.manifest import Tensor
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.errors import BundleError, InputError, VerificationError, WeightsError

MODEL = "model.onnx"
MIN_OPSET = 13
"""From here on all that is rewritten has the form that the rewriting knows."""
WORDS = ("input_ids", "attention_mask", "token_type_ids")
DTYPES = ("float32", "int64", "bool")
IMAGE_SIDE = 224
TRIALS: dict[str, tuple[int, ...]] = {
    "batch": (2, 1, 3),
    "tokens": (16, 5, 33),
    "samples": (16000, 8000, 24000),
    "frames": (300, 50, 401),
    "channels": (3, 3, 3),
}


@dataclass(frozen=True, slots=True)
class IncomingGraph:
    """A graph file that is safe to load.

    files: the graph and the weights beside it. vocab_size: words that it knows, 0 where it reads none.
    """

    path: Path
    files: tuple[Path, ...]
    opset: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    vocab_size: int


def read_graph(folder: Path) -> IncomingGraph:
    """Look through a folder's graph: `model.onnx`, or the only one there.

    Raises: InputError: no graph, or several. WeightsError: unsafe, damaged, quantized or of an opset that is too old.
    """
    files = sorted(folder.glob("*.onnx"))
    path = folder / MODEL if folder / MODEL in files else None
    if path is None:
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "none"
            raise InputError(f"{folder} has no {MODEL}, and not one other graph ({names})", hint="name its folder")
        path = files[0]
    _check_plain(path)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's, which change with its implementation
        raise WeightsError(f"{path.name} is no whole ONNX graph: {str(error)[:200]}") from error
    data = {location for tensor in _tensors(model.graph) if (location := _check_external(path, tensor)) is not None}
    check_acyclic(model.graph)
    try:
        onnx.checker.check_model(path)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise WeightsError(f"{path.name} is no valid graph: {str(error).splitlines()[0][:200]}") from error
    if quantized := sorted({node.op_type for node in model.graph.node} & QUANTIZED):
        raise WeightsError(f"{path.name} is quantized already ({quantized[0]})", hint="give the fp32 graph")
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if opset < MIN_OPSET:
        raise WeightsError(f"{path.name} has opset {opset}", hint=f"export it with opset {MIN_OPSET} or later")
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_signature(value) for value in model.graph.input if value.name not in weights)
    outputs = tuple(_signature(value) for value in model.graph.output)
    for tensor in (*inputs, *outputs):
        if tensor.dtype not in DTYPES:
            raise WeightsError(f"{path.name}: {tensor.name} is {tensor.dtype}", hint="give the fp32 graph")
    return IncomingGraph(path, (path, *sorted(data)), opset, inputs, outputs, _vocab_size(model.graph))


def graph_part(graph: IncomingGraph, axes: Axes) -> ExportPart:
    """A graph as a part whose module runs the graph itself.

    axes: sizes to try for dynamic axes. Raises: InputError: axes that it does not have.
    """
    sides = _image_side(graph.path.parent)
    tried: dict[str, tuple[int, ...]] = {}
    for tensor in graph.inputs:
        for axis, role in zip(tensor.axes, _roles(tensor), strict=False):
            if isinstance(axis, str) and axis not in tried:
                tried[axis] = TRIALS.get(role, sides)
    if unknown := sorted((axes.dynamic or set()) - tried.keys() | axes.fixed.keys() - tried.keys()):
        raise InputError(f"the graph has no dynamic axis {unknown[0]}", hint=f"it has {', '.join(tried) or 'none'}")
    tried |= {name: (size,) * 3 for name, size in axes.fixed.items()}
    trials: list[Mapping[str, int]] = []
    for number in range(3):
        sizes = {axis: values[number] for axis, values in tried.items()}
        if sizes not in trials:
            trials.append(sizes)
    names = [tensor.name for tensor in graph.inputs]
    reads_words = set(names) <= set(WORDS) and "input_ids" in names
    return ExportPart(
        PART,
        GraphModule(graph),
        graph.inputs,
        graph.outputs,
        tuple(trials),
        int8=Int8Recipe(smoothing=0.5, token_scales=True, embeddings=True) if reads_words else Int8Recipe(),
        make_inputs=partial(word_inputs, graph.inputs[0].axes, graph.vocab_size, names, None) if reads_words else None,
    )


class GraphModule(nn.Module):
    """A graph in onnxruntime behind torch's interface."""

    def __init__(self, graph: IncomingGraph) -> None:
        super().__init__()
        self.names = [tensor.name for tensor in graph.inputs]
        self.outputs = [tensor.name for tensor in graph.outputs]
        self.axes = ", ".join(sorted({a for tensor in graph.inputs for a in tensor.axes if isinstance(a, str)}))
        try:
            self.engine = OnnxRuntimeEngine(graph.path, EngineConfig())
        except BundleError as error:
            raise WeightsError(str(error)) from error

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Inputs in the graph's order -> outputs in the graph's order."""
        feeds = {name: value.numpy() for name, value in zip(self.names, inputs, strict=True)}
        try:
            answers = self.engine.run(feeds)
        except Exception as error:  # onnxruntime's exceptions share no base
            shapes = ", ".join(f"{name} {value.shape}" for name, value in feeds.items())
            raise VerificationError(
                f"the graph does not run with {shapes}: {str(error).splitlines()[0][:200]}",
                hint=f"--axes NAME=N names the sizes that it takes; dynamic are {self.axes or 'none'}",
            ) from error
        return tuple(torch.from_numpy(answers[name]) for name in self.outputs)


def check_acyclic(graph: onnx.GraphProto) -> None:
    """Raises: WeightsError: a node needs its own result, by whatever way."""
    made_by = {name: number for number, node in enumerate(graph.node) for name in node.output if name}
    needs = [{made_by[name] for name in node.input if name in made_by} for node in graph.node]
    waiting: dict[int, list[int]] = {}
    for number, sources in enumerate(needs):
        for source in sources:
            waiting.setdefault(source, []).append(number)
    ready = [number for number, sources in enumerate(needs) if not sources]
    n_done = 0
    while ready:
        done = ready.pop()
        n_done += 1
        for number in waiting.get(done, ()):
            needs[number].discard(done)
            if not needs[number]:
                ready.append(number)
    if n_done < len(needs):
        stuck = next(node for node, sources in zip(graph.node, needs, strict=True) if sources)
        raise WeightsError(f"the graph runs in a circle at {stuck.name or stuck.output[0]} ({stuck.op_type})")


def _check_plain(path: Path) -> int:
    """The size in bytes of a plain file. Raises: WeightsError: missing, a link, or something else."""
    try:
        status = path.lstat()
    except OSError as error:
        raise WeightsError(f"{path.name} is missing or cannot be read") from error
    if not stat.S_ISREG(status.st_mode):
        raise WeightsError(f"{path.name} is a link or a special file, not a plain one", hint="copy the file itself")
    return status.st_size


def _check_external(graph: Path, tensor: onnx.TensorProto) -> Path | None:
    """The file with a tensor's values, None where they are in the graph.

    Raises: WeightsError: another folder's file, a link, or a place beyond the file's end.
    """
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    facts = {entry.key: entry.value for entry in tensor.external_data}
    location = facts.get("location", "")
    pure = PurePosixPath(location)
    if pure.is_absolute() or len(pure.parts) != 1 or pure.parts[0] == ".." or set(location) & {"\\", ":", "\0"}:
        raise WeightsError(
            f"{graph.name} keeps {tensor.name[:80]} outside its folder, in {location[:80]!r}",
            hint="weights lie in a file beside the graph",
        )
    path = graph.with_name(location)
    size = _check_plain(path)
    try:
        offset = int(facts.get("offset") or 0)
        length = int(facts.get("length") or size - offset)
    except ValueError as error:
        raise WeightsError(f"{graph.name}: {tensor.name[:80]} has no readable place in {location}") from error
    if offset < 0 or length < 0 or offset + length > size or length != tensor_bytes(tensor):
        raise WeightsError(f"{graph.name}: {tensor.name[:80]} reaches beyond {location}, or is of another size")
    return path


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a graph, those in attributes and in subgraphs too."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _signature(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    axes = [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{value.name}_{number}"
        for number, dim in enumerate(kind.shape.dim)
    ]
    dtype = "unknown" if kind.elem_type == 0 else helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    if math.prod(axis for axis in axes if isinstance(axis, int)) < 1:
        raise WeightsError(f"{value.name} has an axis of no size")
    return Tensor(value.name, dtype, tuple(axes))


def _roles(tensor: Tensor) -> tuple[str, ...]:
    """Names of an input's axes, from its shape: words, a waveform, a log-mel or an image."""
    if tensor.dtype != "float32":
        words = tensor.name in WORDS or len(tensor.axes) != 2
        return ("batch", "tokens" if words else "samples")
    return {
        2: ("batch", "samples"),
        3: ("batch", "channels", "frames"),
        4: ("batch", "channels", "height", "width"),
    }.get(len(tensor.axes), ())


def _vocab_size(graph: onnx.GraphProto) -> int:
    """Rows of the table that `input_ids` looks up."""
    tables: dict[str, Any] = {tensor.name: tensor.dims[0] for tensor in graph.initializer if len(tensor.dims) == 2}
    rows = [
        tables[node.input[0]]
        for node in graph.node
        if node.op_type == "Gather" and node.input[1] == "input_ids" and node.input[0] in tables
    ]
    return max(rows, default=0)


def _image_side(folder: Path) -> tuple[int, ...]:
    """The side of images to try: the config's where there is one."""
    config = read_config(folder) if os.path.lexists(folder / CONFIG) else {}
    side = config.get("image_size", IMAGE_SIDE)
    return (side if isinstance(side, int) and 0 < side <= 4096 else IMAGE_SIDE,) * 3
