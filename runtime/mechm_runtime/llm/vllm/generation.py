"""Asks a vLLM server to continue a prompt with soft tokens greedily, or for the log-probabilities of given answers.

For models that answer in words, as MiniGPT-v2 does. To score answers nothing is generated: the log-probability of every
token of every answer is requested in its place, in one request whose prompts share their beginning in the server's
cache.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from mechm_runtime.errors import LlmUnavailableError
from mechm_runtime.llm.vllm.client import require_accepted, require_served
from mechm_runtime.llm.vllm.completions import (
    PATH,
    generation_request,
    read_generated,
    read_log_probabilities,
    scoring_requests,
)
from mechm_runtime.llm.vllm.config import ServerConfig
from mechm_runtime.llm.vllm.connection import Connection
from mechm_runtime.llm.vllm.embeddings import EmbeddingTable
from mechm_runtime.llm.vllm.tensors import to_torch_file
from mechm_runtime.system.arrays import Float32Array, Int64Array

T = TypeVar("T")


class VllmGenerator:
    """A Llama on a server. embeddings: of the weights that it serves."""

    def __init__(self, config: ServerConfig, embeddings: EmbeddingTable) -> None:
        """Raises: MissingExtraError: the HTTP client is not installed."""
        self.config = config
        self._embeddings = embeddings
        self._connection = Connection(config)

    def close(self) -> None:
        """Close the connections; a request that is not answered yet fails."""
        self._connection.close()

    def check(self) -> None:
        """Check that the server answers and serves the model.

        Raises: LlmUnavailableError: it does not answer, or has not finished starting. InputError: it does not serve the
            model, or refuses the key.
        """
        require_served(self._connection, self.config)

    def generate(
        self, ids: Int64Array, soft_at: Int64Array, soft_tokens: Float32Array, max_new_tokens: int
    ) -> list[int]:
        """Continue a prompt greedily, with at least one token that is not the end; returns the token ids.

        ids: int64 (T,). soft_at: int64 (S,), positions of the soft tokens. soft_tokens: float32 (S, D).
        Raises: LlmUnavailableError: the server does not answer, or too late, or gives an unexpected answer. InputError:
            it refuses the key or does not know the model. ValueError: a soft token has another width or is not finite.
        """
        prompt = to_torch_file(self._embeddings.embed(ids, soft_at, soft_tokens))
        body = generation_request(self.config.model, prompt, max_new_tokens)
        return self._wait(self._generate(body))

    def score(
        self, ids: Int64Array, soft_at: Int64Array, soft_tokens: Float32Array, answers: Sequence[Sequence[int]]
    ) -> Float32Array:
        """Log-probability of each whole answer, float32 (answers,).

        Raises: as `generate`.
        """
        sequences, places = unfold_answers(ids, answers)
        prompts = [to_torch_file(self._embeddings.embed(one, soft_at, soft_tokens)) for one in sequences]
        found = self._wait(self._score(prompts, sorted({token for _, token in places})))
        return sum_answers(found, places, len(answers))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        pending = self._connection.submit(work)
        try:
            return pending.result()
        except concurrent.futures.CancelledError as error:
            raise LlmUnavailableError("the connection to the Llama's server was closed") from error
        except ValueError as error:
            raise LlmUnavailableError(f"unexpected answer of the Llama's server: {error}") from error
        finally:
            pending.cancel()  # where the caller was interrupted; no effect on a finished request

    async def _generate(self, body: bytes) -> list[int]:
        status, answer = await self._connection.send("POST", PATH, body, time.monotonic() + self.config.timeout_s)
        require_accepted(self.config, status)
        return read_generated(answer)

    async def _score(self, prompts: list[str], answers: list[int]) -> list[dict[int, float]]:
        deadline = time.monotonic() + self.config.timeout_s
        found: list[dict[int, float]] = []
        for n_prompts, body in scoring_requests(self.config.model, prompts, answers):
            status, answer = await self._connection.send("POST", PATH, body, deadline)
            require_accepted(self.config, status)
            found += read_log_probabilities(answer, n_prompts)
        return found


def unfold_answers(ids: Int64Array, answers: Sequence[Sequence[int]]) -> tuple[list[Int64Array], list[tuple[int, int]]]:
    """One prompt for every token of every answer, which ends before that token.

    ids: int64 (T,), the common beginning of all prompts.
    Returns: the prompts, and for each of them (number of the answer, token).
    """
    prompts, places = [], []
    for number, answer in enumerate(answers):
        for n_before, token in enumerate(answer):
            prompts.append(np.concatenate([ids, np.array(answer[:n_before], np.int64)]))
            places.append((number, token))
    return prompts, places


def sum_answers(
    found: Sequence[Mapping[int, float]], places: Sequence[tuple[int, int]], n_answers: int
) -> Float32Array:
    """Log-probability of each answer, float32 (answers,): the sum over its tokens.

    found: token id -> log-probability for each prompt of `unfold_answers`. places: as `unfold_answers` returned them.
    Raises: LlmUnavailableError: one is missing.
    """
    scores = np.zeros(n_answers, np.float64)
    for (number, token), log_probabilities in zip(places, found, strict=True):
        if token not in log_probabilities:
            raise LlmUnavailableError(f"the Llama gave no log-probability of token {token}")
        scores[number] += log_probabilities[token]
    return scores.astype(np.float32)
