"""Readiness probes for a vLLM server that is being started: for a bundle's Llama, and for a Llama that generates."""

from __future__ import annotations

import numpy as np

from mechm_runtime.bundle.manifest import LLAMA, Bundle
from mechm_runtime.errors import BundleError
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.llm.scorer import LlamaScorer
from mechm_runtime.llm.vllm.client import VllmClient
from mechm_runtime.llm.vllm.config import ServerConfig
from mechm_runtime.llm.vllm.embeddings import EmbeddingTable
from mechm_runtime.llm.vllm.generation import VllmGenerator
from mechm_runtime.types import Utterance

WARM_UP = (
    Utterance(1, "A", "Is anybody there?"),
    Utterance(2, "B", "Yes, I am. What a surprise to see you here, after all these years!"),
)
"""The conversation that a server is asked about before it counts as ready."""


class QuestionProbe:
    """Asks a bundle's Llama its questions.

    Raises: BundleError: the bundle has no Llama. MissingExtraError: the HTTP client is not installed.
    """

    def __init__(self, bundle: Bundle, server: ServerConfig) -> None:
        if bundle.llama is None:
            raise BundleError(
                f"{bundle.folder} has no Llama", hint="with mechm[export], mechm export bundle --adapter DIR adds one"
            )
        self._questions = QuestionTokenizer(bundle.path(bundle.llama.tokenizer), bundle.llama.questions)
        self._soft_width = bundle.parts[LLAMA].width("soft_tokens")
        self._client = VllmClient(server, self._questions)

    def check(self) -> None:
        """Check that the server answers and serves the model.

        Raises: as `VllmClient.check`.
        """
        self._client.check()

    def warm_up(self) -> None:
        """Ask about a short conversation."""
        LlamaScorer(self._questions, self._client, self._soft_width).score(WARM_UP)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class GenerationProbe:
    """Makes a Llama generate a token. embeddings: of the weights that it serves."""

    def __init__(self, embeddings: EmbeddingTable, server: ServerConfig) -> None:
        self._width = embeddings.hidden_size
        self._generator = VllmGenerator(server, embeddings)

    def check(self) -> None:
        """Check that the server answers and serves the model.

        Raises: as `VllmGenerator.check`.
        """
        self._generator.check()

    def warm_up(self) -> None:
        """Generate one token after a prompt of one token."""
        no_positions, no_tokens = np.zeros(0, np.int64), np.zeros((0, self._width), np.float32)
        self._generator.generate(np.ones(1, np.int64), no_positions, no_tokens, 1)

    def close(self) -> None:
        """Close the connections."""
        self._generator.close()
