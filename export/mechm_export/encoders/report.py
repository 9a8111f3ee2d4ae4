"""The report of an export, which lies beside the graphs as `encoder.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version

from mechm_export.encoders.axes import Precision
from mechm_export.encoders.check import EncoderCheck
from mechm_export.encoders.heads import LABELS_KEY
from mechm_export.graphs.part import ExportPart

REPORT = "encoder.json"
FILES: dict[Precision, str] = {
    "fp32": "model.onnx",
    "fp16": "model_fp16.onnx",
    "bf16": "model_bf16.onnx",
    "int8": "model_int8.onnx",
}
"""The names that transformers.js looks for."""
VERSIONED = ("mechm", "torch", "transformers", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, slots=True)
class WrittenGraph:
    """One precision's graph.

    files: the graph, and the weights beside it where there are too many for one file; name -> (bytes, sha256).
    """

    precision: Precision
    opset: int
    files: Mapping[str, tuple[int, str]]
    export_s: float
    check: EncoderCheck
    loss_accepted: bool = False

    @property
    def size_bytes(self) -> int:
        """Of all its files."""
        return sum(size for size, _ in self.files.values())


@dataclass(frozen=True, slots=True)
class EncoderReport:
    """The graphs that were written, and what is in them.

    refused: precision -> why it was left out. labels: of a classifier's logits, in their order. left_out: the
    checkpoint's tensors that are in no graph, by their names in its files. keeps_head: the task that exports the
    classification head among them, or an empty string.
    """

    source: str
    architecture: str
    task: str
    part: ExportPart
    graphs: tuple[WrittenGraph, ...]
    refused: Mapping[Precision, str]
    labels: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    keeps_head: str = ""

    def to_json(self) -> str:
        """The report as it lies beside the graphs."""
        labels = {LABELS_KEY: dict(enumerate(self.labels))} if self.labels else {}
        report: dict[str, object] = {
            "source": self.source,
            "architecture": self.architecture,
            "task": self.task,
            "inputs": [asdict(tensor) for tensor in self.part.inputs],
            "outputs": [asdict(tensor) for tensor in self.part.outputs],
            "left_out": list(self.left_out),
            "graphs": {
                graph.precision: {
                    "opset": graph.opset,
                    "files": {name: {"size_bytes": size, "sha256": sha} for name, (size, sha) in graph.files.items()},
                    "export_s": round(graph.export_s, 1),
                    "check": asdict(graph.check),
                    "loss_accepted": graph.loss_accepted,
                }
                for graph in self.graphs
            },
            "refused": dict(self.refused),
            "versions": {name: version(name) for name in VERSIONED},
        }
        return json.dumps(report | labels, indent=1) + "\n"
