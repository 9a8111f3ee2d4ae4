"""vLLM in this process: the same questions without a server, for a service that owns its machine.

The only module of the runtime that imports torch and vLLM, and only when a Llama is asked for in this way.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mechm_runtime.bundle import LLAMA, Bundle
from mechm_runtime.errors import LlmUnavailableError
from mechm_runtime.questions import QuestionTokenizer
from mechm_runtime.serving.command import ServeConfig, plan_serving
from mechm_runtime.serving.process import require_vllm
from mechm_runtime.serving.prompts import answer_ids, make_prompts, prompt_places, read_answers


class LocalVllm:
    """What runs the Llama's graph, as the pipeline sees it, by a vLLM engine of its own.

    Threads wait for one another: the engine is not made for several. It stays until the process ends.
    """

    def __init__(self, bundle: Bundle, tokenizer: QuestionTokenizer, config: ServeConfig | None = None) -> None:
        """Load the engine, which takes seconds.

        config: device, concurrency and share of a GPU; None for a GPU where vLLM has one.
        Raises: MissingExtraError: vLLM is not installed. InputError: it is built for another device. BundleError: the
            bundle has no Llama for it.
        """
        require_vllm("cpu" if config is None else config.device)
        plan = plan_serving(bundle, config or ServeConfig(device=_device()))
        for name, value in plan.environment.items():
            os.environ.setdefault(name, value)
        # Its engine in a process of its own would survive this one's end, and start three times as slowly.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import LLM, SamplingParams

        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._hidden_size = bundle.parts[LLAMA].width("soft_tokens")
        self._engine = LLM(**plan.settings, disable_log_stats=False)
        self._scoring = SamplingParams(
            max_tokens=1, temperature=0, logprob_token_ids=answer_ids(tokenizer), detokenize=False
        )

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.float32]]:
        """What the graph would answer to `graph_inputs`.

        Raises: LlmUnavailableError: the engine failed. ValueError: a soft token has another width or is not finite.
        """
        prompts = self._prompts(inputs)
        if not prompts:
            return read_answers([], self._tokenizer)
        with self._lock:
            try:
                outputs = self._engine.generate(prompts, self._scoring, use_tqdm=False)
            except Exception as error:  # an engine that died says so in many ways
                raise LlmUnavailableError(f"vLLM failed: {type(error).__name__}") from error
        try:
            return read_answers([_log_probabilities(one) for one in outputs], self._tokenizer)
        except ValueError as error:
            raise LlmUnavailableError(f"vLLM answered something else: {error}") from error

    def _prompts(self, inputs: Mapping[str, npt.NDArray[Any]]) -> list[dict[str, Any]]:
        """Token ids, and where there are soft tokens, those in the places of some."""
        ids = [{"prompt_token_ids": one} for one in make_prompts(inputs)]
        soft_at, soft_tokens = inputs["soft_at"], inputs["soft_tokens"]
        if not len(soft_at):
            return ids
        # A wrong width hangs the engine, and what is not finite makes it answer token 0.
        if soft_tokens.shape != (len(soft_at), self._hidden_size) or not np.isfinite(soft_tokens).all():
            raise ValueError(f"soft tokens {soft_tokens.shape} are not finite, or not of width {self._hidden_size}")
        import torch

        length = inputs["input_ids"].shape[1]
        is_token = np.ones(length, bool)
        is_token[soft_at] = False
        embeddings = np.zeros((length, self._hidden_size), np.float32)
        embeddings[soft_at] = soft_tokens
        mixed = torch.from_numpy(embeddings).to(self._engine.model_config.dtype)
        return [
            {
                **prompt,
                "prompt_is_token_ids": is_token[places].tolist(),
                "prompt_embeds": mixed[torch.from_numpy(places)],
            }
            for prompt, places in zip(ids, prompt_places(inputs), strict=True)
        ]


def _device() -> str:
    from vllm.platforms import current_platform

    return "cuda" if current_platform.is_cuda() else "cpu"


def _log_probabilities(output: Any) -> dict[int, float]:
    (first,) = output.outputs[0].logprobs
    return {int(token): float(entry.logprob) for token, entry in first.items()}
