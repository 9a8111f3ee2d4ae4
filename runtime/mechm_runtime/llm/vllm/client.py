"""Asks a vLLM server for the answers' log-probabilities, with the interface of the Llama's graph.

The prompts of one conversation are sent in one request, as token ids; where there are soft tokens, as embeddings, in as
few requests as their size allows. No text goes into logs or errors.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time

from mechm_runtime.errors import InputError, LlmUnavailableError
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.llm.vllm.completions import PATH, object_list, read_log_probabilities, scoring_requests
from mechm_runtime.llm.vllm.config import ServerConfig
from mechm_runtime.llm.vllm.connection import BUSY, Connection, SlowServerError, UnexpectedAnswerError
from mechm_runtime.llm.vllm.embeddings import EmbeddingTable
from mechm_runtime.llm.vllm.prompts import answer_ids, make_embedded_prompts, make_prompts, read_answers
from mechm_runtime.llm.vllm.tensors import to_torch_file
from mechm_runtime.output.formatting import printable
from mechm_runtime.system.arrays import Arrays, Float32Array
from mechm_runtime.system.time_limit import check_time, current_limit, seconds_left

Outputs = dict[str, Float32Array]

GRACE_S = 0.5
"""Longest wait, past a request's end, for the connections' thread to report it."""
MAX_LISTED = 5
"""Models of a server that are named where it has not the right one."""


class VllmClient:
    """Runs the Llama's questions on a vLLM server. Several threads and event loops may share it.

    embeddings: of the Llama, for prompts with soft tokens; None where it is asked about words alone.
    """

    def __init__(
        self, config: ServerConfig, tokenizer: QuestionTokenizer, embeddings: EmbeddingTable | None = None
    ) -> None:
        """Raises: MissingExtraError: the HTTP client is not installed."""
        self.config = config
        self._tokenizer = tokenizer
        self._embeddings = embeddings
        self._answers = answer_ids(tokenizer)
        self._breaker = _CircuitBreaker(config.backoff_s, config.max_backoff_s)
        self._connection = Connection(config)

    def close(self) -> None:
        """Close the connections; a request that is not answered yet fails."""
        self._connection.close()

    def check(self) -> None:
        """Check that the server answers and serves the model, so that a wrong address or key is found at the start.

        Where it fails, it is not asked again for a while; where it succeeds, it is asked at once.
        Raises: as `require_served`.
        """
        try:
            require_served(self._connection, self.config)
        except LlmUnavailableError as error:
            self._breaker.failed(str(error))
            raise
        self._breaker.succeeded()

    def run(self, inputs: Arrays) -> Outputs:
        """Outputs of the Llama's graph for `graph_inputs`.

        The current request's time limit (`system.time_limit`) shortens the wait, besides the configured timeout.
        Raises: LlmUnavailableError: the server does not answer, or too late, or gives an unexpected answer, refuses the
            key or does not know the model. OutOfTimeError: no time was left to ask.
        """
        timeout_s = self._timeout_s()
        pending = self._submit(inputs, timeout_s)
        try:
            return pending.result(timeout_s + GRACE_S)
        except TimeoutError as error:
            raise LlmUnavailableError("the connection to the Llama's server hangs") from error
        except concurrent.futures.CancelledError as error:
            raise LlmUnavailableError("the connection to the Llama's server was closed") from error
        finally:
            pending.cancel()  # where the caller was interrupted; no effect on a finished request

    async def run_async(self, inputs: Arrays) -> Outputs:
        """`run` without blocking the caller's event loop. Cancelled, it ends the request.

        Raises: as `run`.
        """
        pending = await asyncio.to_thread(self._submit, inputs, self._timeout_s())
        try:
            return await asyncio.wrap_future(pending)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise LlmUnavailableError("the connection to the Llama's server was closed") from error

    def _timeout_s(self) -> float:
        """Seconds that the server may take.

        Raises: OutOfTimeError: none is left.
        """
        check_time()
        return min(self.config.timeout_s, seconds_left())

    def _submit(self, inputs: Arrays, timeout_s: float) -> concurrent.futures.Future[Outputs]:
        """Make the prompts and send them; they must be answered in `timeout_s` from now."""
        until = time.monotonic() + timeout_s
        limit = current_limit()
        late = limit.reason if limit is not None and timeout_s < self.config.timeout_s else ""
        if not len(inputs["soft_at"]):
            return self._connection.submit(self._ask(make_prompts(inputs), until, late))
        if self._embeddings is None:
            raise ValueError("no embeddings for the words of a prompt with soft tokens")
        embedded = make_embedded_prompts(inputs, self._embeddings)
        return self._connection.submit(self._ask([to_torch_file(one) for one in embedded], until, late))

    async def _ask(self, prompts: list[list[int]] | list[str], until: float, late: str) -> Outputs:
        """Ask and read the answers.

        until: on `time.monotonic`'s clock. late: the reason to give when that time passes, where it is the caller's
        limit; it is not held against the server then.
        """
        if prompts:
            self._breaker.check()
        log_probabilities: list[dict[int, float]] = []
        try:
            for n_prompts, body in scoring_requests(self.config.model, prompts, self._answers):
                status, answer = await self._connection.send("POST", PATH, body, until)
                try:
                    require_accepted(self.config, status)
                except InputError as error:  # it served us at the start; this conversation is answered without it
                    raise LlmUnavailableError(str(error)) from error
                log_probabilities += read_log_probabilities(answer, n_prompts)
            outputs = read_answers(log_probabilities, self._tokenizer)
        except ValueError as error:
            failure = f"unexpected answer of the Llama's server: {error}"
            self._breaker.failed(failure)
            raise LlmUnavailableError(failure) from error
        except LlmUnavailableError as error:
            if late and isinstance(error, SlowServerError):
                raise SlowServerError(f"{late}: the Llama's server did not answer in time") from error
            if not isinstance(error, _RefusedError):
                self._breaker.failed(str(error))
            raise
        if prompts:
            self._breaker.succeeded()
        return outputs


def require_served(connection: Connection, config: ServerConfig) -> None:
    """Check that a server answers and serves the model.

    Raises: UnexpectedAnswerError: it is no model server. LlmUnavailableError: it does not answer, or has not finished
        starting. InputError: it does not serve the model, or refuses the key.
    """
    until = time.monotonic() + config.connect_timeout_s
    asked = connection.submit(connection.send("GET", "/v1/models", None, until, wait_for_slot=False))
    try:
        status, body = asked.result()
        require_accepted(config, status)
        names = sorted(one["id"] for one in object_list(body, "data") if isinstance(one.get("id"), str))
    except (ValueError, UnexpectedAnswerError) as error:
        raise UnexpectedAnswerError(
            f"the server at {config.url} is no vLLM server: {error}",
            hint="check the address; mechm serve llm starts one",
        ) from error
    if config.model not in names:
        served = ", ".join(printable(name)[:80] for name in names[:MAX_LISTED]) or "nothing"
        raise InputError(
            f"the server at {config.url} serves {served}, not {config.model}", hint="mechm serve uses this name"
        )


def require_accepted(config: ServerConfig, status: int) -> None:
    """Raise the error for the HTTP status of an answer; nothing for 200.

    Raises: InputError: no request like this one can succeed. LlmUnavailableError: the server failed, or refused this
        request.
    """
    if status in (401, 403):
        raise InputError(
            f"the server at {config.url} refuses the API key", hint="give the key that the server was started with"
        )
    if status == 404:
        raise InputError(
            f"the server at {config.url} does not know the model {config.model}",
            hint="mechm serve llm gives a bundle's Llama this name",
        )
    if 400 <= status < 500 and status not in BUSY:
        raise _RefusedError(f"the Llama's server refused the questions with status {status}")
    if status != 200:
        raise LlmUnavailableError(f"the Llama's server answered with status {status}")


class _RefusedError(LlmUnavailableError):
    """The server refused one request; others may still succeed."""


class _CircuitBreaker:
    """Fails requests at once for a while after the server failed, so that not every conversation waits for it."""

    def __init__(self, backoff_s: float, max_backoff_s: float) -> None:
        self._first_s, self._max_s = backoff_s, max_backoff_s
        self._next_s = backoff_s
        self._until = 0.0
        self._failure = ""
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raise where the server failed a short time ago.

        Raises: LlmUnavailableError: it did.
        """
        with self._lock:
            left, failure = self._until - time.monotonic(), self._failure
        if left > 0:
            raise LlmUnavailableError(f"{failure}; it is asked again in {left:.1f} s")

    def failed(self, failure: str) -> None:
        """Note a failure: requests fail at once for a while, twice as long as after the failure before."""
        with self._lock:
            self._failure = failure
            self._until = time.monotonic() + self._next_s
            self._next_s = min(2 * self._next_s, self._max_s)

    def succeeded(self) -> None:
        """Note a success: the next failure counts as the first."""
        with self._lock:
            self._until, self._next_s = 0.0, self._first_s
