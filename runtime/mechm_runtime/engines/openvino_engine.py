"""One exported graph on OpenVINO: bfloat16 where the processor has it, int8 weights as int8.

A file in fp32 is run in fp32. One whose weights are int8 (`PORTABLE_INT8`) is run with its linear layers in int8, the
activations quantized as the graph says, or else a few channels at a time as they come, and all else in bfloat16 where
the processor computes in it.
"""

from __future__ import annotations

import queue
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.errors import BundleError, MissingExtraError
from mechm_runtime.system.arrays import Array, Arrays
from mechm_runtime.system.telemetry import import_openvino

GROUP_SIZE = 64
"""Channels of an activation that share a scale. It divides the width of every layer here, Llama-2's too."""


class OpenVinoEngine:
    """A loaded graph. `run` may be called from several threads at once; they take turns on the same cores.

    Raises: MissingExtraError: no OpenVINO. BundleError: the file is missing, no graph, or onnxruntime's own int8.
    """

    def __init__(self, path: Path, config: EngineConfig) -> None:
        try:
            openvino = import_openvino()
        except ImportError as error:
            raise MissingExtraError("openvino", extra="openvino") from error
        core = shared_core()
        try:
            model = core.read_model(path)
            # Before it is compiled: afterwards a tensor has the names of all that it was found to equal.
            names = tuple(tuple(v.get_any_name() for v in values) for values in (model.inputs, model.outputs))
            has_int8_weights = any(
                constant.get_element_type() == openvino.Type.i8
                for constant in model.get_ops()
                if constant.get_type_name() == "Constant"
            )
            bf16 = has_int8_weights and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            self._compiled = core.compile_model(
                model,
                "CPU",
                {
                    "INFERENCE_NUM_THREADS": config.threads,
                    "NUM_STREAMS": 1,
                    "ENABLE_CPU_PINNING": False,  # cores are shared: a pinned thread waits for whoever is on its core
                    "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
                    "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP_SIZE if has_int8_weights else 0,
                },
            )
        except RuntimeError as error:
            reason = str(error).strip().rpartition("\n")[2][:200]
            raise BundleError(
                f"{path.name} cannot be loaded: {reason}",
                hint="get the bundle again, as from mechm bundle fetch SOURCE --force",
            ) from error
        self.input_names, self.output_names = names
        # A request holds one run's memory; as many are kept as threads have ever run at once.
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Run the graph: arrays by input name to arrays by output name.

        A graph keeps only inputs that it uses; others are passed over.
        """
        feeds = {name: np.ascontiguousarray(inputs[name]) for name in self.input_names}
        try:
            request = self._requests.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()
        try:
            found = request.infer(feeds, share_inputs=True)
            # Copies: the next run writes into the request's own memory.
            return {name: np.array(found[index]) for index, name in enumerate(self.output_names)}
        finally:
            self._requests.put(request)


@cache
def shared_core() -> Any:
    """The process's one Core, which is never destroyed.

    Where a processor has AMX, OpenVINO's CPU plugin gives the thread that loads it a stack for signals, and takes it
    back where the last Core ends. Where that is in another thread, the first keeps what is no memory any more: the next
    signal that Python handles, such as SIGTERM, ends the process with SIGSEGV (OpenVINO 2026.4).
    """
    return import_openvino().Core()
