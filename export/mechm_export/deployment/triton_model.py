"""The model `mechm` of a Triton model repository: a conversation as JSON in, its analysis as JSON out.

`mechm bundle to-triton` copies this file there as `model.py`; Triton's Python backend runs it. The work between the
graphs (tokenizing, pooling, windows, decision) is done by the runtime's own pipeline. Its graphs are the repository's
other models, called through the backend (business logic scripting), so that Triton batches the calls of simultaneous
conversations. Only text is read: no media is decoded and no file is opened for a request. The Python of the backend
needs `pip install mechm`, without an inference engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from mechm_runtime.bundle.manifest import PartFiles
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.errors import MechmError
from mechm_runtime.pipeline import Pipeline
from mechm_runtime.readers import parse_conversation


class TritonPart:
    """Runs a part as another model of the same server, behind the runtime's interface."""

    def __init__(self, model: str, part: PartFiles) -> None:
        self._model = model
        self._part = part

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Compute the outputs, by name, from the inputs, by name.

        Raises: TritonModelException: the model failed, or is not loaded.
        """
        given = [
            # Triton has no tensor with a batch axis only: config.pbtxt declares an axis of 1, and removes it again.
            pb_utils.Tensor(t.name, inputs[t.name][:, None] if t.axes == ("batch",) else inputs[t.name])
            for t in self._part.inputs
        ]
        response = pb_utils.InferenceRequest(
            model_name=self._model,
            requested_output_names=[tensor.name for tensor in self._part.outputs],
            inputs=given,
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        ).exec()
        if response.has_error():
            raise pb_utils.TritonModelException(response.error().message())
        return {
            tensor.name: pb_utils.get_output_tensor_by_name(response, tensor.name).as_numpy()
            for tensor in self._part.outputs
        }


class TritonPythonModel:
    """The class that the Python backend loads; an instance answers one request after the other."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the bundle beside this file; the other models may be loaded later."""
        prefix = args["model_name"]
        bundle = open_bundle(Path(__file__).parent / "bundle")
        self._pipeline = Pipeline(
            bundle, modalities=("text",), load_part=lambda part: TritonPart(f"{prefix}_{part.name}", part)
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests; one that cannot be answered fails by itself, with the library's message."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        given = pb_utils.get_input_tensor_by_name(request, "conversation").as_numpy()
        try:
            text = bytes(given.reshape(-1)[0]).decode("utf-8")
            analysis = self._pipeline.analyze(parse_conversation(text, name="conversation"))
        except (MechmError, UnicodeDecodeError) as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        except pb_utils.TritonModelException as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"a part failed: {error}"))
        answer = np.array([analysis.to_json().encode("utf-8")], dtype=np.object_)
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("analysis", answer)])
