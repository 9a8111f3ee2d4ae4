"""The engine `onnxruntime-gpu`: onnxruntime on CUDA.

onnxruntime runs whatever a provider does not take on the CPU, with a line on stderr at most. Here that is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.engines.spec import CUDA, GPU_ENGINE
from mechm_runtime.errors import ProviderError

CUDA_OPTIONS: Mapping[str, str] = {
    # By default cuDNN times every convolution algorithm for each shape that it meets, and recordings differ in length.
    "cudnn_conv_algo_search": "HEURISTIC",
    # By default each graph's memory grows to the next power of two, and there are up to eight graphs on a GPU.
    "arena_extend_strategy": "kSameAsRequested",
    # By default products in fp32 keep ten bits of a fraction, as fp16 does: what fp16 changed too much would be changed
    # all the same.
    "use_tf32": "0",
}

RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"
"""The setting of a session with which it tells which provider took which operator (onnxruntime 1.24)."""

COMPUTING = frozenset(
    ("Attention", "Conv", "Einsum", "FusedConv", "FusedMatMul", "Gemm", "MatMul", "MultiHeadAttention", "NhwcConv")
)
"""Operators that take the time. Others may run on the CPU: onnxruntime computes shapes there by choice."""

PROBE_TIMEOUT_S = 60.0


class CudaEngine(OnnxRuntimeEngine):
    """A graph loaded by onnxruntime on CUDA, with nothing left to the CPU that takes time.

    Raises: as `OnnxRuntimeEngine`. ProviderError: also where an operator that takes time was left to the CPU.
    """

    provider_options = CUDA_OPTIONS
    session_entries: ClassVar = {RECORD_ASSIGNMENT: "1"}

    def _absent(self) -> ProviderError:
        from mechm_runtime.environment.packages import engine_distributions, gpu_install_command

        installed = engine_distributions()
        return ProviderError(
            f"the installed onnxruntime ({', '.join(installed) or 'of no distribution'}) has no {CUDA}, and the engine "
            f"is {GPU_ENGINE}",
            hint=gpu_install_command(installed),
        )

    def _not_loaded(self, reason: str) -> ProviderError:
        """The error where CUDA is there and does not run, with the cause that a process of its own finds."""
        from mechm_runtime.environment.onnxruntime import examine_provider
        from mechm_runtime.environment.packages import engine_distributions, gpu_install_command

        found = examine_provider(CUDA, timeout_s=PROBE_TIMEOUT_S)
        cause = found.reason or reason
        return ProviderError(
            f"{CUDA} did not load{': ' if cause else ''}{cause}",
            hint=found.fix or f"{gpu_install_command(engine_distributions())}; mechm doctor tells what works",
        )

    def _check(self, session: Any) -> None:
        check_assignment(session, self._path.name)


def check_assignment(session: Any, graph: str) -> None:
    """See that nothing that takes time was left to the CPU.

    session: an InferenceSession that was opened with `RECORD_ASSIGNMENT`. graph: its file's name.
    Raises: ProviderError.
    """
    left: Counter[str] = Counter(
        node.op_type
        for subgraph in session.get_provider_graph_assignment_info()
        if subgraph.ep_name != CUDA
        for node in subgraph.get_nodes()
        if node.op_type in COMPUTING
    )
    if left:
        listed = ", ".join(f"{n} {operator}" for operator, n in sorted(left.items()))
        raise ProviderError(
            f"{CUDA} left a part of {graph} to the CPU: {listed}",
            hint=f"pip install --upgrade '{GPU_ENGINE}[cuda,cudnn]'",
        )
