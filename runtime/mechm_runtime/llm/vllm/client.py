"""Ask a vLLM server for the answers' log-probabilities, as the pipeline asks a graph.

One conversation's prompts travel in one request, as token ids; where something was heard or seen, as embeddings with
soft tokens among them, in as few requests as their size allows. No text goes into logs or errors.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mechm_runtime.errors import InputError, LlmUnavailableError
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.llm.vllm.completions import PATH, entries, read_choices, requests
from mechm_runtime.llm.vllm.config import ServerConfig
from mechm_runtime.llm.vllm.connection import BUSY, Connection
from mechm_runtime.llm.vllm.embeddings import EmbeddingTable
from mechm_runtime.llm.vllm.prompts import answer_ids, make_embedded_prompts, make_prompts, read_answers
from mechm_runtime.llm.vllm.tensors import to_torch_file

Outputs = dict[str, npt.NDArray[np.float32]]


class VllmServer:
    """What runs the Llama's graph, as the pipeline sees it, by asking a server. Safe for several threads and loops.

    embeddings: the Llama's, for prompts with soft tokens; without them it is asked about words alone.
    """

    def __init__(
        self, config: ServerConfig, tokenizer: QuestionTokenizer, embeddings: EmbeddingTable | None = None
    ) -> None:
        """Raises: MissingExtraError."""
        self.config = config
        self._tokenizer = tokenizer
        self._embeddings = embeddings
        self._answers = answer_ids(tokenizer)
        self._rest = _Rest(config.rest_s, config.max_rest_s)
        self._connection = Connection(config)

    def close(self) -> None:
        """Close the connections; a request on its way fails."""
        self._connection.close()

    def check(self) -> None:
        """Ask whether the server is there and serves the model, so that a wrong address or key is found at the start.

        Raises: LlmUnavailableError: it is not there, or has not finished starting. InputError: it does not serve the
            model, or refuses the key.
        """
        require_served(self._connection, self.config)

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Outputs:
        """What the graph would answer to `graph_inputs`.

        Raises: LlmUnavailableError: the server does not answer, not in time, or not what it should. InputError: it
            refuses the key or does not know the model.
        """
        under_way = self._submit(inputs)
        try:
            return under_way.result()
        except concurrent.futures.CancelledError as error:
            raise LlmUnavailableError("the connection to the Llama's server was closed") from error
        finally:
            under_way.cancel()  # of one who was interrupted; what has ended does not mind

    async def run_async(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Outputs:
        """The same without blocking the caller's event loop. Cancelled, it ends the request.

        Raises: as `run`.
        """
        under_way = await asyncio.to_thread(self._submit, inputs)
        try:
            return await asyncio.wrap_future(under_way)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise LlmUnavailableError("the connection to the Llama's server was closed") from error

    def _submit(self, inputs: Mapping[str, npt.NDArray[Any]]) -> concurrent.futures.Future[Outputs]:
        deadline = time.monotonic() + self.config.timeout_s
        if not len(inputs["soft_at"]):
            return self._connection.submit(self._ask(make_prompts(inputs), deadline))
        if self._embeddings is None:
            raise ValueError("there are soft tokens, and no embeddings of the words around them")
        embedded = make_embedded_prompts(inputs, self._embeddings)
        return self._connection.submit(self._ask([to_torch_file(one) for one in embedded], deadline))

    async def _ask(self, prompts: list[list[int]] | list[str], deadline: float) -> Outputs:
        if prompts:
            self._rest.check()
        answered: list[dict[int, float]] = []
        try:
            for n_prompts, body in requests(self.config.model, prompts, self._answers):
                status, answer = await self._connection.send("POST", PATH, body, deadline)
                require_accepted(self.config, status)
                answered += read_choices(answer, n_prompts)
            outputs = read_answers(answered, self._tokenizer)
        except ValueError as error:
            self._rest.failed()
            raise LlmUnavailableError(f"the Llama's server answered something else: {error}") from error
        except LlmUnavailableError as error:
            if not isinstance(error, _RefusedError):
                self._rest.failed()
            raise
        if prompts:
            self._rest.worked()
        return outputs


def require_served(connection: Connection, config: ServerConfig) -> None:
    """Refuse a server that is not there or serves something else.

    Raises: LlmUnavailableError: it is not there, or has not finished starting. InputError: it does not serve the model,
        or refuses the key.
    """
    deadline = time.monotonic() + config.connect_timeout_s
    status, body = connection.submit(connection.send("GET", "/v1/models", None, deadline, in_turn=False)).result()
    require_accepted(config, status)
    try:
        names = sorted(str(one.get("id")) for one in entries(body, "data"))
    except ValueError as error:
        raise LlmUnavailableError(f"what answers at {config.url} is no vLLM server: {error}") from error
    if config.model not in names:
        raise InputError(
            f"the server at {config.url} serves {', '.join(names) or 'nothing'}, not {config.model}",
            hint="mechm serve serves under this name",
        )


def require_accepted(config: ServerConfig, status: int) -> None:
    """Judge the status of a server's answer.

    Raises: InputError: what was asked cannot work. LlmUnavailableError: the server failed, or refused this question.
    """
    if status in (401, 403):
        raise InputError(f"the server at {config.url} refuses the API key", hint="give the one it was started with")
    if status == 404:
        raise InputError(
            f"the server at {config.url} does not know the model {config.model}",
            hint="mechm serve llm serves a bundle's Llama under this name",
        )
    if 400 <= status < 500 and status not in BUSY:
        raise _RefusedError(f"the Llama's server refused the questions with status {status}")
    if status != 200:
        raise LlmUnavailableError(f"the Llama's server answered with status {status}")


class _RefusedError(LlmUnavailableError):
    """What was asked was refused: the server is well, and others may ask it."""


class _Rest:
    """Leaves a server alone for a while after it failed, so that not every conversation waits for it."""

    def __init__(self, rest_s: float, max_rest_s: float) -> None:
        self._first_s, self._max_s = rest_s, max_rest_s
        self._next_s = rest_s
        self._until = 0.0
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raises: LlmUnavailableError: it failed just now."""
        with self._lock:
            left = self._until - time.monotonic()
        if left > 0:
            raise LlmUnavailableError(f"the Llama's server failed; it is asked again in {left:.1f} s")

    def failed(self) -> None:
        with self._lock:
            self._until = time.monotonic() + self._next_s
            self._next_s = min(2 * self._next_s, self._max_s)

    def worked(self) -> None:
        with self._lock:
            self._until, self._next_s = 0.0, self._first_s
