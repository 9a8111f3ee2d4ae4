"""Ask a vLLM server to write on after a prompt with soft tokens, greedily, or how likely given answers are.

For models that answer in words, as MiniGPT-v2 does. To score answers nothing is written: every token of every answer is
asked about where it would stand, in one request whose prompts share their beginning in the server's cache.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mechm_runtime.errors import LlmUnavailableError
from mechm_runtime.llm.vllm.client import require_accepted, require_served
from mechm_runtime.llm.vllm.completions import PATH, read_choices, read_written, requests, writing_request
from mechm_runtime.llm.vllm.config import ServerConfig
from mechm_runtime.llm.vllm.connection import Connection
from mechm_runtime.llm.vllm.embeddings import EmbeddingTable
from mechm_runtime.llm.vllm.tensors import to_torch_file

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
T = TypeVar("T")


class VllmWriter:
    """A Llama behind a server. embeddings: of the weights that it serves."""

    def __init__(self, config: ServerConfig, embeddings: EmbeddingTable) -> None:
        """Raises: MissingExtraError."""
        self.config = config
        self._embeddings = embeddings
        self._connection = Connection(config)

    def close(self) -> None:
        """Close the connections; a request on its way fails."""
        self._connection.close()

    def check(self) -> None:
        """Ask whether the server is there and serves the model.

        Raises: LlmUnavailableError: it is not there, or has not finished starting. InputError: it does not serve the
            model, or refuses the key.
        """
        require_served(self._connection, self.config)

    def write(self, ids: Ids, soft_at: Ids, soft_tokens: Floats, max_new_tokens: int) -> list[int]:
        """Token ids that follow, greedily, at least one that is not the end.

        ids: int64 (T,). soft_at: int64 (S,), where soft tokens stand. soft_tokens: float32 (S, D).
        Raises: LlmUnavailableError: the server does not answer, not in time, or not what it should. InputError: it
            refuses the key or does not know the model. ValueError: a soft token has another width or is not finite.
        """
        prompt = to_torch_file(self._embeddings.embed(ids, soft_at, soft_tokens))
        body = writing_request(self.config.model, prompt, max_new_tokens)
        return self._wait(self._write(body))

    def score(self, ids: Ids, soft_at: Ids, soft_tokens: Floats, answers: Sequence[Sequence[int]]) -> Floats:
        """Log-probability of each answer's tokens together, float32 (answers,).

        Raises: as `write`.
        """
        sequences, places = unfold_answers(ids, answers)
        prompts = [to_torch_file(self._embeddings.embed(one, soft_at, soft_tokens)) for one in sequences]
        found = self._wait(self._score(prompts, sorted({token for _, token in places})))
        return sum_answers(found, places, len(answers))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        under_way = self._connection.submit(work)
        try:
            return under_way.result()
        except concurrent.futures.CancelledError as error:
            raise LlmUnavailableError("the connection to the Llama's server was closed") from error
        except ValueError as error:
            raise LlmUnavailableError(f"the Llama's server answered something else: {error}") from error
        finally:
            under_way.cancel()  # of one who was interrupted; what has ended does not mind

    async def _write(self, body: bytes) -> list[int]:
        status, answer = await self._connection.send("POST", PATH, body, time.monotonic() + self.config.timeout_s)
        require_accepted(self.config, status)
        return read_written(answer)

    async def _score(self, prompts: list[str], answers: list[int]) -> list[dict[int, float]]:
        deadline = time.monotonic() + self.config.timeout_s
        found: list[dict[int, float]] = []
        for n_prompts, body in requests(self.config.model, prompts, answers):
            status, answer = await self._connection.send("POST", PATH, body, deadline)
            require_accepted(self.config, status)
            found += read_choices(answer, n_prompts)
        return found


def unfold_answers(ids: Ids, answers: Sequence[Sequence[int]]) -> tuple[list[Ids], list[tuple[int, int]]]:
    """A prompt for every token of every answer, which ends where the token would stand.

    ids: int64 (T,), what all of them begin with.
    Returns: the prompts, and for each (number of the answer, token).
    """
    prompts, places = [], []
    for number, answer in enumerate(answers):
        for n_before, token in enumerate(answer):
            prompts.append(np.concatenate([ids, np.array(answer[:n_before], np.int64)]))
            places.append((number, token))
    return prompts, places


def sum_answers(found: Sequence[Mapping[int, float]], places: Sequence[tuple[int, int]], n_answers: int) -> Floats:
    """Log-probability of each answer, float32 (answers,).

    found: token id -> log-probability for each prompt of `unfold_answers`. places: as it returned them.
    Raises: LlmUnavailableError: one is missing.
    """
    scores = np.zeros(n_answers, np.float64)
    for (number, token), log_probabilities in zip(places, found, strict=True):
        if token not in log_probabilities:
            raise LlmUnavailableError(f"the Llama says nothing of token {token}")
        scores[number] += log_probabilities[token]
    return scores.astype(np.float32)
