"""Tracing of torch modules to ONNX graphs.

`portable` graphs are opset 18 with attention written out as matrix products: every engine reads them. `fused` graphs
are opset 23, and their Attention operators are rewritten to onnxruntime's MultiHeadAttention; they are the base of int8
on CPU, which that rewrite made 2 to 3.7 times faster than torch (DESIGN.md section 7).
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch

from mechm_export.graphs.attention import attention_implementation, fuse_attention
from mechm_export.graphs.files import needs_data_file, strip_provenance
from mechm_export.graphs.part import ExportPart
from mechm_runtime.errors import VerificationError

GraphKind = Literal["portable", "fused"]
OPSETS: dict[GraphKind, int] = {"portable": 18, "fused": 23}


def export_graph(part: ExportPart, path: Path, kind: GraphKind, opset: int | None = None) -> None:
    """Write a part as one ONNX file with its weights inside, or in `<path>.data` beside it above EXTERNAL_BYTES.

    opset: None for the default of the kind.
    Raises: VerificationError: the exporter returned no graph.
    """
    external = needs_data_file(sum(p.numel() * p.element_size() for p in part.module.parameters()))
    feeds = part.trial_inputs(part.trial_sizes[0], np.random.default_rng(0))
    arguments = tuple(torch.from_numpy(feeds[tensor.name]) for tensor in part.inputs)
    dynamic = tuple({i: axis for i, axis in enumerate(t.axes) if isinstance(axis, str)} for t in part.inputs)
    with attention_implementation(part.module, "eager" if kind == "portable" else "sdpa"), _quiet_exporter():
        program = torch.onnx.export(
            part.module,
            arguments,
            dynamo=True,
            opset_version=opset or OPSETS[kind],
            input_names=[tensor.name for tensor in part.inputs],
            output_names=[tensor.name for tensor in part.outputs],
            dynamic_shapes=dynamic,
            external_data=False,
            optimize=True,
        )
    if program is None:  # only the exporter before dynamo returns None, but the annotation allows it
        raise VerificationError(f"{part.name}: the exporter returned no graph")
    if external:  # written tensor by tensor, so that the weights are never in memory twice
        with _quiet_exporter():
            program.save(path, external_data=True)
        model = onnx.load(path, load_external_data=False)
    else:
        model = program.model_proto
    if kind == "fused" and part.n_heads:
        fuse_attention(model, part.n_heads)
    strip_provenance(model)
    onnx.save_model(model, path)
    onnx.checker.check_model(path)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's progress notes and its own deprecation warnings off the terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
