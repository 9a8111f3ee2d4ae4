"""Plans how vLLM runs a bundle's Llama: engine arguments, environment, memory, and the command of a server."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from mechm_runtime.bundle.manifest import Bundle, LlamaFiles, ServedLlama
from mechm_runtime.errors import BundleError, InputError
from mechm_runtime.llm.vllm.config import MODEL
from mechm_runtime.llm.vllm.memory import LlamaShape, MemoryEstimate, estimate_memory, read_shape

BLOCK_SIZE = 32
"""Tokens per block of the prefix cache. vLLM's CPU backend does not accept 16, and with its default of 128 little of a
conversation would be shared, since only whole blocks are (DESIGN.md section 5)."""

MAX_LOGPROBS = 64
"""Log-probabilities that a request may ask for; both questions together have 21 answers."""

DTYPES: Mapping[str, str] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""Precision of the weights -> vLLM's name of it."""

API_KEY = "VLLM_API_KEY"
"""The environment variable that vLLM reads the key from; a command line is visible to every user of a machine."""

OFFLINE_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
"""Environment variables with which vLLM sends no statistics and downloads nothing."""


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Options of vLLM, in a server or in this process.

    host, port: address of the server. device: `cpu` or `cuda`.
    concurrency: prompts processed at once. gpu_memory: share of the GPU's memory, above 0 up to 1.
    api_key: required from clients; never printed.
    step_tokens: tokens processed in one step; longer prompts are split (chunked prefill), so that short ones need not
        wait for them. None for vLLM's default.
    Raises: InputError: too few step_tokens, or a host that other machines reach, without an API key. ValueError:
        another value is out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    device: str = "cpu"
    concurrency: int = 16
    gpu_memory: float = 0.9
    api_key: str | None = field(default=None, repr=False)
    step_tokens: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536 or self.concurrency < 1 or not 0 < self.gpu_memory <= 1:
            raise ValueError("a port, a concurrency or a share of memory is out of range")
        if self.step_tokens is not None and self.step_tokens < max(self.concurrency, BLOCK_SIZE):
            raise InputError(
                f"{self.step_tokens} are too few tokens a step for {self.concurrency} prompts at once in blocks of "
                f"{BLOCK_SIZE}",
                hint="raise step_tokens, or lower concurrency",
            )
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device {self.device!r} is neither cpu nor cuda")
        if not self.api_key and not is_loopback(self.host):
            raise InputError(
                f"other machines can reach {self.host}, which is not allowed without an API key",
                hint=f"set {API_KEY} to a secret, or leave --host out",
            )


@dataclass(frozen=True, slots=True)
class ServingPlan:
    """Arguments and environment of a vLLM that runs a Llama, in a server or in this process.

    settings: vLLM's engine arguments. environment: variables to add. shape: of the Llama. context: tokens of the
    longest prompt with its answer. memory: for weights and for the cache of all prompts that are processed at once.
    """

    settings: Mapping[str, Any]
    environment: Mapping[str, str]
    shape: LlamaShape
    context: int
    memory: MemoryEstimate


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def plan_serving(bundle: Bundle, config: ServeConfig) -> ServingPlan:
    """Plan vLLM for a bundle's Llama.

    Raises: BundleError: the bundle has no Llama for vLLM.
    """
    if bundle.served is None or bundle.llama is None:
        raise BundleError(
            f"{bundle.folder} has no Llama for vLLM",
            hint=f"with mechm[export]: mechm export llm --bundle {bundle.folder} adds it",
        )
    folder = bundle.path(f"{bundle.served.folder}/config.json").parent.absolute()
    shape = read_shape(folder / "config.json")
    settings = engine_settings(shape, bundle.llama, bundle.served, config, folder)
    return _plan(shape, bundle.served.dtype, settings, config, quantized=bundle.served.quantization != "none")


def plan_folder(folder: Path, dtype: str, max_tokens: int, config: ServeConfig) -> ServingPlan:
    """Plan vLLM for a plain Llama in the Hugging Face layout.

    dtype: of its weights, a key of `DTYPES`. max_tokens: of the longest prompt with its answer.
    Raises: BundleError: the folder has no config of a Llama.
    """
    shape = read_shape(folder / "config.json")
    context = min(max_tokens, shape.max_position_embeddings)
    settings = model_settings(folder.absolute(), dtype, context, config)
    return _plan(shape, dtype, settings, config, quantized=False)


def _plan(
    shape: LlamaShape, dtype: str, settings: Mapping[str, Any], config: ServeConfig, *, quantized: bool
) -> ServingPlan:
    context = int(settings["max_model_len"])
    memory = estimate_memory(shape, dtype, concurrency=config.concurrency, context=context, quantized=quantized)
    environment = dict(OFFLINE_ENVIRONMENT)
    if config.device == "cpu":
        environment |= {
            # More than one thread is slower on cores that are shared (DESIGN.md section 5).
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": str(max(1, -(-memory.cache_bytes // (1 << 30)))),
        }
    return ServingPlan(settings, environment, shape, context, memory)


def serve_arguments(plan: ServingPlan, config: ServeConfig) -> list[str]:
    """Arguments after `python -m` that start vLLM's OpenAI server."""
    return ["vllm.entrypoints.openai.api_server", *server_arguments(plan.settings, config)]


def serve_environment(plan: ServingPlan, config: ServeConfig) -> dict[str, str]:
    """Environment variables of the server, the API key included."""
    return {**plan.environment, **({API_KEY: config.api_key} if config.api_key else {})}


def context_length(shape: LlamaShape, llama: LlamaFiles) -> int:
    """Tokens of the longest prompt plus one: vLLM generates a token, whose log-probabilities are the answer."""
    return min(llama.questions.max_tokens + 1, shape.max_position_embeddings)


def engine_settings(
    shape: LlamaShape, llama: LlamaFiles, served: ServedLlama, config: ServeConfig, folder: PurePath
) -> dict[str, Any]:
    """vLLM's engine arguments for a bundle's Llama, in a server or in this process.

    folder: of the weights, where vLLM runs.
    """
    return model_settings(folder, served.dtype, context_length(shape, llama), config)


def model_settings(folder: PurePath, dtype: str, context: int, config: ServeConfig) -> dict[str, Any]:
    """vLLM's engine arguments for a Llama.

    folder: of the weights, where vLLM runs. dtype: of the weights, a key of `DTYPES`. context: most tokens of a prompt
        with its answer.
    """
    settings: dict[str, Any] = {
        "model": str(folder),
        "dtype": DTYPES[dtype],
        "max_model_len": context,
        "max_num_seqs": config.concurrency,
        "enable_prefix_caching": True,
        "enable_prompt_embeds": True,
        "block_size": BLOCK_SIZE,
        "max_logprobs": MAX_LOGPROBS,
    }
    if config.step_tokens is not None:
        settings |= {"enable_chunked_prefill": True, "max_num_batched_tokens": config.step_tokens}
    if config.device == "cuda":
        return {**settings, "gpu_memory_utilization": config.gpu_memory}
    return {**settings, "enforce_eager": True}  # compiling takes a minute at the start and gains nothing for one token


def server_arguments(settings: Mapping[str, Any], config: ServeConfig) -> list[str]:
    """Command-line arguments of vLLM's server, wherever it runs.

    settings: see `engine_settings`.
    """
    engine: list[str] = []
    for name, value in settings.items():
        engine += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return [
        *engine,
        *("--served-model-name", MODEL, "--host", config.host, "--port", str(config.port)),
        *("--enable-prompt-tokens-details", "--disable-uvicorn-access-log", "--no-enable-log-requests"),
    ]
