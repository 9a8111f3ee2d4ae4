"""Runs vLLM inside this process instead of on a server, for a service that has its machine to itself.

The only module of the runtime that imports torch and vLLM, and only when one of its classes is made.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mechm_runtime.bundle.manifest import LLAMA, Bundle
from mechm_runtime.errors import LlmUnavailableError
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.llm.vllm.generation import sum_answers, unfold_answers
from mechm_runtime.llm.vllm.launch_plan import ServeConfig, ServingPlan, plan_folder, plan_serving
from mechm_runtime.llm.vllm.process import require_vllm
from mechm_runtime.llm.vllm.prompts import answer_ids, make_prompts, prompt_positions, read_answers
from mechm_runtime.system.arrays import Arrays, BoolArray, Float32Array, Int64Array
from mechm_runtime.system.telemetry import disable_telemetry
from mechm_runtime.system.time_limit import OutOfTimeError, wait_s


class InProcessVllm:
    """Runs the Llama's questions on a vLLM engine in this process, with the interface of the Llama's graph.

    Threads wait for one another: the engine serves one caller at a time. It stays loaded until the process ends.
    """

    def __init__(self, bundle: Bundle, tokenizer: QuestionTokenizer, config: ServeConfig | None = None) -> None:
        """Load the engine, which takes seconds.

        config: device, concurrency and share of a GPU; None for a GPU where vLLM finds one.
        Raises: MissingExtraError: vLLM is not installed. InputError: it is built for another device. BundleError: the
            bundle has no Llama for vLLM.
        """
        require_vllm("cpu" if config is None else config.device)
        self._tokenizer = tokenizer
        self._hidden_size = bundle.parts[LLAMA].width("soft_tokens")
        self._engine = _Engine(plan_serving(bundle, config or ServeConfig(device=_device())))
        self._scoring = {"max_tokens": 1, "temperature": 0, "logprob_token_ids": answer_ids(tokenizer)}

    def run(self, inputs: Arrays) -> dict[str, Float32Array]:
        """Outputs of the Llama's graph for `graph_inputs`.

        Raises: LlmUnavailableError: the engine failed. ValueError: a soft token has another width or is not finite.
        """
        prompts = self._prompts(inputs)
        if not prompts:
            return read_answers([], self._tokenizer)
        outputs = self._engine.generate(prompts, self._scoring)
        try:
            return read_answers([_log_probabilities(one) for one in outputs], self._tokenizer)
        except ValueError as error:
            raise LlmUnavailableError(f"unexpected answer of vLLM: {error}") from error

    def _prompts(self, inputs: Arrays) -> list[dict[str, Any]]:
        """Prompts as token ids; where there are soft tokens, as token ids and embeddings."""
        ids = [{"prompt_token_ids": one} for one in make_prompts(inputs)]
        soft_at, soft_tokens = inputs["soft_at"], inputs["soft_tokens"]
        if not len(soft_at):
            return ids
        mixed, is_token = self._engine.embed(inputs["input_ids"].shape[1], soft_at, soft_tokens, self._hidden_size)
        return [
            {
                **prompt,
                "prompt_is_token_ids": is_token[places].tolist(),
                "prompt_embeds": mixed[places],
            }
            for prompt, places in zip(ids, prompt_positions(inputs), strict=True)
        ]


class InProcessGenerator:
    """A plain Llama that generates answers, or scores them, on a vLLM engine in this process; for MiniGPT-v2."""

    def __init__(self, folder: Path, dtype: str, max_tokens: int, config: ServeConfig | None = None) -> None:
        """Load the engine, which takes seconds.

        folder: in the Hugging Face layout. dtype, max_tokens: see `mechm_runtime.llm.vllm.launch_plan.plan_folder`.
        Raises: MissingExtraError: vLLM is not installed. InputError: it is built for another device. BundleError: the
            folder has no config of a Llama.
        """
        require_vllm("cpu" if config is None else config.device)
        plan = plan_folder(folder, dtype, max_tokens, config or ServeConfig(device=_device()))
        self._hidden_size = plan.shape.hidden_size
        self._engine = _Engine(plan)

    def generate(
        self, ids: Int64Array, soft_at: Int64Array, soft_tokens: Float32Array, max_new_tokens: int
    ) -> list[int]:
        """Continue a prompt greedily; see `mechm_runtime.llm.vllm.generation.VllmGenerator.generate`."""
        greedy = {"max_tokens": max_new_tokens, "min_tokens": 1, "temperature": 0, "repetition_penalty": 1}
        (output,) = self._engine.generate([self._prompt(ids, soft_at, soft_tokens)], greedy)
        return list(output.outputs[0].token_ids)

    def score(
        self, ids: Int64Array, soft_at: Int64Array, soft_tokens: Float32Array, answers: Sequence[Sequence[int]]
    ) -> Float32Array:
        """Log-probability of each answer; see `mechm_runtime.llm.vllm.generation.VllmGenerator.score`."""
        sequences, places = unfold_answers(ids, answers)
        scoring = {"max_tokens": 1, "temperature": 0, "logprob_token_ids": sorted({token for _, token in places})}
        outputs = self._engine.generate([self._prompt(one, soft_at, soft_tokens) for one in sequences], scoring)
        return sum_answers([_log_probabilities(one) for one in outputs], places, len(answers))

    def _prompt(self, ids: Int64Array, soft_at: Int64Array, soft_tokens: Float32Array) -> dict[str, Any]:
        mixed, is_token = self._engine.embed(len(ids), soft_at, soft_tokens, self._hidden_size)
        return {
            "prompt_token_ids": ids.tolist(),
            "prompt_is_token_ids": is_token.tolist(),
            "prompt_embeds": mixed,
        }


class _Engine:
    """vLLM's engine, one caller at a time."""

    def __init__(self, plan: ServingPlan) -> None:
        for name, value in plan.environment.items():
            os.environ.setdefault(name, value)
        # An engine in a separate process would outlive this process, and take three times as long to start.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        disable_telemetry()
        from vllm import LLM

        self._lock = threading.Lock()
        self._llm = LLM(**plan.settings, disable_log_stats=False)

    def generate(self, prompts: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> list[Any]:
        """Generate a continuation of each prompt; waits for other callers as long as the request's time limit allows.

        Raises: LlmUnavailableError: the engine failed. OutOfTimeError: other callers took all the time.
        """
        from vllm import SamplingParams

        timeout_s = wait_s()
        if not self._lock.acquire(timeout=-1 if timeout_s is None else timeout_s):
            raise OutOfTimeError
        try:
            try:
                outputs = self._llm.generate(prompts, SamplingParams(**settings, detokenize=False), use_tqdm=False)
            except Exception as error:  # a broken engine raises exceptions of many kinds
                raise LlmUnavailableError(f"vLLM failed: {type(error).__name__}") from error
        finally:
            self._lock.release()
        return list(outputs)

    def embed(
        self, length: int, soft_at: Int64Array, soft_tokens: Float32Array, hidden_size: int
    ) -> tuple[Any, BoolArray]:
        """A torch tensor (length, hidden_size) with the soft tokens in their places, and bool (length,) of the others.

        Raises: ValueError: a soft token has another width or is not finite.
        """
        # A wrong width makes the engine hang, and a value that is not finite makes it answer token 0.
        if soft_tokens.shape != (len(soft_at), hidden_size) or not np.isfinite(soft_tokens).all():
            raise ValueError(f"soft tokens {soft_tokens.shape} are not finite, or not of width {hidden_size}")
        import torch

        is_token = np.ones(length, bool)
        is_token[soft_at] = False
        embeddings = np.zeros((length, hidden_size), np.float32)
        embeddings[soft_at] = soft_tokens
        return torch.from_numpy(embeddings).to(self._llm.model_config.dtype), is_token


def _device() -> str:
    disable_telemetry()
    from vllm.platforms import current_platform

    return "cuda" if current_platform.is_cuda() else "cpu"


def _log_probabilities(output: Any) -> dict[int, float]:
    (first,) = output.outputs[0].logprobs
    return {int(token): float(entry.logprob) for token, entry in first.items()}
