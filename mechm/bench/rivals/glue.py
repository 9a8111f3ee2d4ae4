"""Common glue code: plain onnxruntime fp32 graphs, one utterance at a time, and vLLM's generate over HTTP.

The graphs are the bundle's fp32 ones in sessions with onnxruntime's defaults except for the number of threads; audio is
padded to 30 s, the only length that optimum's export of Whisper takes. The server was started with the merged weights,
by `mechm serve llm` or otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from mechm.bench.rivals import PARTS, RivalConfig
from mechm.bench.rivals.generators import ServerGenerator, question_tokenizer
from mechm.bench.rivals.per_utterance import AnswerGenerator, PerUtteranceSystem
from mechm_runtime.bundle.manifest import Bundle
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.system.telemetry import import_onnxruntime


class PlainSession:
    """A graph in a session as in onnxruntime's documentation."""

    def __init__(self, path: Path, n_threads: int) -> None:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._inputs = [one.name for one in self._session.get_inputs()]
        self._outputs = [one.name for one in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph on arrays by input name; returns arrays by output name."""
        given = self._session.run(None, {name: inputs[name] for name in self._inputs})
        return dict(zip(self._outputs, given, strict=True))


def make(bundle: Bundle, config: RivalConfig) -> PerUtteranceSystem:
    """See `mechm.bench.rivals.make_rival`."""

    def load() -> tuple[Mapping[str, GraphRunner], AnswerGenerator | None]:
        names = [name for name in PARTS if name in bundle.parts]
        parts = {name: PlainSession(bundle.path(bundle.parts[name].files["fp32"]), config.n_threads) for name in names}
        if not config.generates or config.server is None:
            return parts, None
        return parts, ServerGenerator(config.server, question_tokenizer(bundle))

    return PerUtteranceSystem(
        "onnxruntime glue",
        bundle,
        load,
        llama="vLLM" if config.generates else "",
        pads=True,
        modalities=config.modalities,
    )
