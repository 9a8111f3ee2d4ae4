"""Ask a vLLM server for the answers' log-probabilities, over HTTP.

One conversation's prompts travel in one request and nothing is decoded: the server is asked for one token and for the
exact log-probabilities of the answers' tokens in its place. A request has no side effects, so it may be sent again
where no answer was begun. No text goes into logs or errors, no proxy of the environment is used and no redirect
followed: what is said in a conversation goes to the server that was named, and nowhere else.
"""

from __future__ import annotations

import json
import random
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from mechm_runtime.errors import InputError, LlmUnavailableError, MissingExtraError
from mechm_runtime.questions import QuestionTokenizer
from mechm_runtime.serving.prompts import answer_ids, make_prompts, read_answers

MODEL = "mechm-llama"
"""The name under which `mechm serve llm` serves it."""
MAX_ANSWER_BYTES = 16 << 20
BUSY = (429, 502, 503, 504)
"""Answers of a server, or of what stands before it, that say: not now."""
PAUSE_S = 0.05
"""Before the first retry; twice as long before each further one, with jitter."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where a server is and how patiently it is asked.

    url: scheme, host and port. api_key: what the server wants to be shown; never printed. model: as it names it.
    timeout_s: for the answers on one window of a conversation, waiting for a free place included.
    connect_timeout_s: part of it, for reaching the server. max_in_flight: requests at once, of all threads.
    n_retries: after a refused connection or a busy server, within `timeout_s`.
    rest_s: how long a server that failed is left alone; further failures double that, up to `max_rest_s`.
    """

    url: str = "http://127.0.0.1:8000"
    api_key: str | None = field(default=None, repr=False)
    model: str = MODEL
    timeout_s: float = 30.0
    connect_timeout_s: float = 2.0
    max_in_flight: int = 8
    n_retries: int = 2
    rest_s: float = 1.0
    max_rest_s: float = 30.0

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            usable = (
                parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.username
            )
            parts.port  # noqa: B018  # raises where it is no number
        except ValueError:
            usable = False
        if not usable:
            raise InputError("the server's address is no http(s)://host:port", hint="for example http://127.0.0.1:8000")
        if min(self.timeout_s, self.connect_timeout_s, self.rest_s, self.max_rest_s) <= 0 or self.max_in_flight < 1:
            raise ValueError("a timeout or a limit of the server is not positive")
        if self.n_retries < 0:
            raise ValueError(f"n_retries={self.n_retries} is negative")


class VllmServer:
    """What runs the Llama's graph, as the pipeline sees it, by asking a server. Safe for several threads."""

    def __init__(self, config: ServerConfig, tokenizer: QuestionTokenizer) -> None:
        """Raises: MissingExtraError."""
        try:
            import httpx2
        except ImportError as error:
            raise MissingExtraError("httpx2", extra="vllm") from error
        self.config = config
        self._tokenizer = tokenizer
        self._answers = answer_ids(tokenizer)
        self._places = threading.BoundedSemaphore(config.max_in_flight)
        self._rest = _Rest(config.rest_s, config.max_rest_s)
        self._client = httpx2.Client(
            base_url=config.url,
            headers={} if config.api_key is None else {"Authorization": f"Bearer {config.api_key}"},
            limits=httpx2.Limits(max_connections=config.max_in_flight, max_keepalive_connections=config.max_in_flight),
            trust_env=False,
            follow_redirects=False,
        )
        # Who drops a pipeline need not know that this one has connections.
        self._closed = weakref.finalize(self, self._client.close)

    def close(self) -> None:
        """Close the connections; a request on its way fails."""
        self._closed()

    def check(self) -> None:
        """Ask whether the server is there and serves the model, so that a wrong address or key is found at the start.

        Raises: LlmUnavailableError: it is not there, or has not finished starting. InputError: it does not serve the
            model, or refuses the key.
        """
        status, body = self._send("GET", "/v1/models", None, time.monotonic() + self.config.connect_timeout_s)
        self._require_accepted(status)
        try:
            names = sorted(str(one.get("id")) for one in _entries(body, "data"))
        except ValueError as error:
            raise LlmUnavailableError(f"what answers at {self.config.url} is no vLLM server: {error}") from error
        if self.config.model not in names:
            raise InputError(
                f"the server at {self.config.url} serves {', '.join(names) or 'nothing'}, not {self.config.model}",
                hint="mechm serve llm serves a bundle's Llama under this name",
            )

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.float32]]:
        """What the graph would answer to `graph_inputs`.

        Raises: LlmUnavailableError: the server does not answer, not in time, or not what it should. InputError: it
            refuses the key or does not know the model.
        """
        if len(inputs["soft_at"]):
            raise ValueError("a server is asked about words alone, and there are soft tokens")
        prompts = make_prompts(inputs)
        if not prompts:
            return read_answers([], self._tokenizer)
        deadline = time.monotonic() + self.config.timeout_s
        self._rest.check()
        if not self._places.acquire(timeout=self.config.timeout_s):
            raise LlmUnavailableError(f"{self.config.max_in_flight} requests to the Llama's server are under way")
        try:
            answered = self._ask(prompts, deadline)
            outputs = read_answers(answered, self._tokenizer)
        except ValueError as error:
            self._rest.failed()
            raise LlmUnavailableError(f"the Llama's server answered something else: {error}") from error
        except LlmUnavailableError as error:
            if not isinstance(error, _RefusedError):
                self._rest.failed()
            raise
        finally:
            self._places.release()
        self._rest.worked()
        return outputs

    def _ask(self, prompts: list[list[int]], deadline: float) -> list[dict[int, float]]:
        """Token id -> log-probability for each prompt.

        Raises: ValueError: the answer has another form.
        """
        body = {
            "model": self.config.model,
            "prompt": prompts,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 0,
            "logprob_token_ids": self._answers,
            "return_tokens_as_token_ids": True,
        }
        status, answer = self._send("POST", "/v1/completions", body, deadline)
        self._require_accepted(status)
        choices = {one.get("index"): one for one in _entries(answer, "choices")}
        if sorted(choices, key=str) != sorted(range(len(prompts)), key=str):
            raise ValueError(f"{len(choices)} answers to {len(prompts)} prompts")
        return [_log_probabilities(choices[index]) for index in range(len(prompts))]

    def _require_accepted(self, status: int) -> None:
        """Raises: InputError: what was asked cannot work. LlmUnavailableError: the server failed."""
        if status in (401, 403):
            raise InputError(
                f"the server at {self.config.url} refuses the API key", hint="give the one it was started with"
            )
        if status == 404:
            raise InputError(
                f"the server at {self.config.url} does not know the model {self.config.model}",
                hint="mechm serve llm serves a bundle's Llama under this name",
            )
        if 400 <= status < 500 and status not in BUSY:
            raise _RefusedError(f"the Llama's server refused the questions with status {status}")
        if status != 200:
            raise LlmUnavailableError(f"the Llama's server answered with status {status}")

    def _send(self, method: str, path: str, body: dict[str, Any] | None, deadline: float) -> tuple[int, Any]:
        """Status and content, asked again where that is safe and there is time.

        Raises: LlmUnavailableError.
        """
        import httpx2

        pause = PAUSE_S
        for retries_left in range(self.config.n_retries, -1, -1):
            try:
                status, content = self._send_once(method, path, body, deadline)
                if status not in BUSY or not retries_left:
                    return status, content
            except (httpx2.ConnectError, httpx2.RemoteProtocolError) as error:
                # Refused, or closed before an answer began.
                if not retries_left:
                    raise LlmUnavailableError(f"no Llama's server at {self.config.url}") from error
            except httpx2.TimeoutException as error:
                raise LlmUnavailableError(f"the Llama's server took longer than {self.config.timeout_s:g} s") from error
            except (httpx2.HTTPError, RuntimeError) as error:  # RuntimeError: the client was closed in another thread
                raise LlmUnavailableError(
                    f"the connection to the Llama's server broke: {type(error).__name__}"
                ) from error
            pause_s = pause * random.uniform(0.5, 1.5)  # noqa: S311
            if time.monotonic() + pause_s >= deadline:
                break
            time.sleep(pause_s)
            pause *= 2
        raise LlmUnavailableError(f"no answer of the Llama's server at {self.config.url} in time")

    def _send_once(self, method: str, path: str, body: dict[str, Any] | None, deadline: float) -> tuple[int, Any]:
        import httpx2

        left = deadline - time.monotonic()
        if left <= 0:
            raise httpx2.ReadTimeout("no time is left")
        timeout = httpx2.Timeout(left, connect=min(left, self.config.connect_timeout_s))
        with self._client.stream(method, path, json=body, timeout=timeout) as response:
            content = bytearray()
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    raise LlmUnavailableError(f"the Llama's server answered more than {MAX_ANSWER_BYTES >> 20} MiB")
                if time.monotonic() > deadline:
                    raise httpx2.ReadTimeout("the answer came too slowly")
            if response.status_code != 200:
                return response.status_code, None  # an error may repeat what was asked
        try:
            return 200, json.loads(content)
        except (ValueError, RecursionError) as error:
            raise LlmUnavailableError("the Llama's server answered something that is no JSON") from error


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


def _entries(body: Any, key: str) -> list[dict[str, Any]]:
    """Raises: ValueError: the content is no object with a list of objects there."""
    entries = body.get(key) if isinstance(body, dict) else None
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise ValueError(f"it has no {key}")
    return entries


def _log_probabilities(choice: Mapping[str, Any]) -> dict[int, float]:
    """Of one choice, as vLLM writes them with `return_tokens_as_token_ids`: `token_id:123` -> log-probability."""
    try:
        (first,) = choice["logprobs"]["top_logprobs"]
        return {int(name.removeprefix("token_id:")): float(value) for name, value in first.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError("an answer has no log-probabilities") from error
