"""An imported model that answers questions about a picture; the ViT runs in torch, the Llama in torch or vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM

from mechm.minigpt.folder import MAX_TOKENS, imported_folders, stored_precision
from mechm.minigpt.image_tokens import ImageTokens
from mechm.minigpt.prompt import PromptReader
from mechm.minigpt.torch_llama import TorchGenerator
from mechm.model.transformers_output import quiet_transformers
from mechm_runtime.errors import InputError
from mechm_runtime.llm.vllm.config import ServerConfig
from mechm_runtime.llm.vllm.embeddings import EmbeddingTable
from mechm_runtime.llm.vllm.generation import VllmGenerator
from mechm_runtime.llm.vllm.launch_plan import ServeConfig

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

Backend = Literal["torch", "vllm", "vllm-local"]

MAX_NEW_TOKENS = 20
"""MER-MCE's value; Emotion-LLaMA reasons in up to 500."""


class Generator(Protocol):
    """Interface to the Llama: generates answers greedily and scores given ones."""

    def generate(self, ids: Ids, soft_at: Ids, soft_tokens: Floats, max_new_tokens: int) -> list[int]:
        """Generate token ids; the first is never the end token, as in MiniGPT-v2 (`min_length=1`).

        ids: int64 (T,). soft_at: int64 (S,), positions of the soft tokens. soft_tokens: float32 (S, D).
        """

    def score(self, ids: Ids, soft_at: Ids, soft_tokens: Floats, answers: Sequence[Sequence[int]]) -> Floats:
        """Compute the joint log-probability of each answer's tokens, float32 (answers,)."""


class MiniGptV2:
    """Answers questions about pictures.

    image_tokens: the ViT and its projection. prompts, generator: of the same Llama.
    """

    def __init__(self, image_tokens: ImageTokens, prompts: PromptReader, generator: Generator) -> None:
        self.image_tokens, self.prompts, self.generator = image_tokens, prompts, generator

    @property
    def image_size(self) -> int:
        """Side of a picture in pixels."""
        return self.image_tokens.config.image_size

    def encode_picture(self, pixel_values: Floats, features: Floats | None = None) -> Floats:
        """Encode a picture to tokens, float32 (n_tokens, D), which can be used for any number of questions.

        pixel_values: float32 (3, image_size, image_size), see `mechm_runtime.modalities.frame_pixels.squeezed_pixels`.
        features: float32 (3, feature_size), for Emotion-LLaMA.
        Raises: InputError: another shape, or features for a variant that takes none.
        """
        if pixel_values.shape != (3, self.image_size, self.image_size):
            raise InputError(
                f"a picture {pixel_values.shape} where (3, {self.image_size}, {self.image_size}) is expected"
            )
        like = self.image_tokens.llama_proj.weight
        given = [None if one is None else torch.from_numpy(one).to(like)[None] for one in (pixel_values, features)]
        with torch.inference_mode():
            tokens: Floats = self.image_tokens(*given)[0].float().cpu().numpy()
        return tokens

    def answer(
        self, tokens: Floats, text: str, *, task: str | None = None, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> str:
        """Generate the answer to a question, greedily.

        tokens: of a picture, see `encode_picture`. text, task: see `PromptReader.read`.
        """
        prompt = self.prompts.read(text, task=task)
        return self.prompts.decode(self.generator.generate(prompt.ids, prompt.image_at, tokens, max_new_tokens))

    def score(self, tokens: Floats, text: str, answers: Sequence[str], *, task: str | None = None) -> Floats:
        """Compute the log-probability of each answer with its end token, float32 (answers,).

        Raises: InputError: no answers.
        """
        if not answers:
            raise InputError("no answers to score")
        prompt = self.prompts.read(text, task=task)
        wanted = [self.prompts.answer_ids(answer) for answer in answers]
        return self.generator.score(prompt.ids, prompt.image_at, tokens, wanted)


def open_minigpt(
    folder: Path,
    *,
    backend: Backend = "torch",
    server: ServerConfig | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> MiniGptV2:
    """Open a model written by `mechm import minigpt-v2`.

    backend: runs the Llama: torch, a vLLM server that serves `folder/llm`, or a vLLM engine in this process.
    server: for `vllm`; None for one on this machine.
    dtype, device: of the ViT, and of the Llama where torch runs it.
    Raises: WeightsError: the folder is not complete. InputError: a server for another backend. MissingExtraError: the
        client of a server, or vLLM, is not installed.
    """
    vision, llama = imported_folders(folder)
    if server is not None and backend != "vllm":
        raise InputError(f"a server for backend {backend}", hint="use backend vllm")
    with quiet_transformers():
        image_tokens = ImageTokens.from_folder(vision, dtype).to(device)
    config = image_tokens.config
    prompts = PromptReader(llama / "tokenizer.json", config.variant, config.n_tokens)
    return MiniGptV2(image_tokens, prompts, _make_generator(llama, backend, server, dtype, device))


def _make_generator(
    llama: Path, backend: Backend, server: ServerConfig | None, dtype: torch.dtype, device: str
) -> Generator:
    if backend == "vllm":
        return VllmGenerator(server or ServerConfig(), EmbeddingTable(llama))
    if backend == "vllm-local":
        from mechm_runtime.llm.vllm.in_process import InProcessGenerator

        return InProcessGenerator(llama, stored_precision(llama), MAX_TOKENS, ServeConfig(device=device))
    with quiet_transformers():
        loaded: Any = AutoModelForCausalLM.from_pretrained(llama, dtype=dtype, local_files_only=True)
    return TorchGenerator(loaded.to(device))
