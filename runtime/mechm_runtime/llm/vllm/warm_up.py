"""Who asks a vLLM server that is being started whether it answers: for a bundle's Llama, and for one that writes."""

from __future__ import annotations

import numpy as np

from mechm_runtime.bundle.manifest import LLAMA, Bundle
from mechm_runtime.errors import BundleError
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.llm.scorer import LlamaReader
from mechm_runtime.llm.vllm.client import VllmServer
from mechm_runtime.llm.vllm.config import ServerConfig
from mechm_runtime.llm.vllm.embeddings import EmbeddingTable
from mechm_runtime.llm.vllm.generation import VllmWriter
from mechm_runtime.types import Utterance

WARM_UP = (
    Utterance(1, "A", "Is anybody there?"),
    Utterance(2, "B", "Yes, I am. What a surprise to see you here, after all these years!"),
)
"""What a server is asked before it counts as ready."""


class QuestionClient:
    """Asks a bundle's Llama its questions.

    Raises: BundleError: the bundle has none. MissingExtraError.
    """

    def __init__(self, bundle: Bundle, server: ServerConfig) -> None:
        if bundle.llama is None:
            raise BundleError(f"{bundle.folder} has no Llama", hint="mechm export bundle --llm DIR makes one with it")
        self._questions = QuestionTokenizer(bundle.path(bundle.llama.tokenizer), bundle.llama.questions)
        self._soft_width = bundle.parts[LLAMA].width("soft_tokens")
        self._server = VllmServer(server, self._questions)

    def check(self) -> None:
        """Raises: as `VllmServer.check`."""
        self._server.check()

    def warm_up(self) -> None:
        """Ask about a short conversation."""
        LlamaReader(self._questions, self._server, self._soft_width).read(WARM_UP)

    def close(self) -> None:
        """Close the connections."""
        self._server.close()


class WritingClient:
    """Has a Llama write a token. embeddings: of the weights that it serves."""

    def __init__(self, embeddings: EmbeddingTable, server: ServerConfig) -> None:
        self._width = embeddings.hidden_size
        self._writer = VllmWriter(server, embeddings)

    def check(self) -> None:
        """Raises: as `VllmWriter.check`."""
        self._writer.check()

    def warm_up(self) -> None:
        """Write a token after another one."""
        no_place, no_tokens = np.zeros(0, np.int64), np.zeros((0, self._width), np.float32)
        self._writer.write(np.ones(1, np.int64), no_place, no_tokens, 1)

    def close(self) -> None:
        """Close the connections."""
        self._writer.close()
