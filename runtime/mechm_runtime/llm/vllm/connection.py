"""HTTP connections to one server, for any thread and any event loop: requests run on an event loop in its own thread.

Synchronous and asynchronous callers share this implementation: both get a future. Cancelling it ends the request, which
makes the server stop. Requests have no side effects, so they are sent again where no answer has begun. No proxy of the
environment is used and no redirect followed, so that a conversation is sent to the configured server only.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import os
import random
import threading
import time
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

from mechm_runtime.errors import LlmUnavailableError, MissingExtraError
from mechm_runtime.llm.vllm.config import ServerConfig

MAX_ANSWER_BYTES = 16 << 20
BUSY = (429, 502, 503, 504)
"""HTTP statuses of a server or its proxy that is busy: the request may succeed later."""
FIRST_RETRY_S = 0.05
"""Wait before the first retry; it doubles before each further one, with jitter."""


class SlowServerError(LlmUnavailableError):
    """No answer in the time that the request was given."""


class UnexpectedAnswerError(LlmUnavailableError):
    """An answer that no model server gives: something else is at this address, or the server is broken."""


T = TypeVar("T")


class Connection:
    """A pool of connections to one server. Coroutines that use it run on its event loop, by `submit`.

    After a fork the child makes a pool and a loop of its own: sockets and threads of the parent are not shared.
    """

    def __init__(self, config: ServerConfig) -> None:
        """Raises: MissingExtraError: the HTTP client is not installed."""
        try:
            import httpx2  # noqa: F401  # here, so that it is found missing at the start and not at the first request
        except ImportError as error:
            raise MissingExtraError("httpx2", extra="vllm") from error
        self.config = config
        self._lock = threading.Lock()
        self._loop: _Loop | None = None
        self._closed = False
        # Connections are closed with the last reference to this object, for pipelines that are dropped without `close`.
        self._finalizer: weakref.finalize[..., Any] | None = None

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine on the connection's loop.

        Raises: LlmUnavailableError: the connection was closed.
        """
        with self._lock:
            if self._closed:
                work.close()
                raise LlmUnavailableError("the connection to the Llama's server was closed")
            if self._loop is None or self._loop.pid != os.getpid():
                self._loop = _Loop(self.config)
                self._finalizer = weakref.finalize(self, self._loop.close)
            return asyncio.run_coroutine_threadsafe(work, self._loop.loop)

    def close(self) -> None:
        """Close the connections; a request that is not answered yet fails."""
        with self._lock:
            self._closed = True
            if self._finalizer is not None:
                self._finalizer()

    async def send(
        self, method: str, path: str, body: bytes | None, deadline: float, *, wait_for_slot: bool = True
    ) -> tuple[int, Any]:
        """Send a request, with retries, and return status and content. Only for coroutines on the connection's loop.

        deadline: on `time.monotonic`'s clock. wait_for_slot: wait for one of the `max_in_flight` slots.
        Raises: SlowServerError: no answer by the deadline. LlmUnavailableError: a connection that broke, or an answer
            that is not plain JSON of at most `MAX_ANSWER_BYTES`.
        """
        assert self._loop is not None  # noqa: S101  # `submit` made it
        if not wait_for_slot:
            return await self._send(self._loop, method, path, body, deadline)
        slots = self._loop.slots
        try:
            async with asyncio.timeout_at(deadline):
                await slots.acquire()
        except TimeoutError as error:
            raise SlowServerError(f"the Llama's server is busy with {self.config.max_in_flight} requests") from error
        try:
            return await self._send(self._loop, method, path, body, deadline)
        finally:
            slots.release()

    async def _send(self, loop: _Loop, method: str, path: str, body: bytes | None, deadline: float) -> tuple[int, Any]:
        import httpx2

        wait_s = FIRST_RETRY_S
        for retries_left in range(self.config.n_retries, -1, -1):
            try:
                async with asyncio.timeout_at(deadline):
                    status, content = await self._send_once(loop, method, path, body)
                if status not in BUSY or not retries_left:
                    return status, content
            except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.RemoteProtocolError) as error:
                # Refused, unreachable, or closed before an answer began.
                if not retries_left:
                    raise LlmUnavailableError(f"no Llama's server at {self.config.url}") from error
            except TimeoutError as error:
                raise SlowServerError(f"the Llama's server took longer than {self.config.timeout_s:g} s") from error
            except (httpx2.HTTPError, OSError) as error:
                raise LlmUnavailableError(
                    f"the connection to the Llama's server broke: {type(error).__name__}"
                ) from error
            jittered_s = wait_s * random.uniform(0.5, 1.5)  # noqa: S311
            if time.monotonic() + jittered_s >= deadline:
                break
            await asyncio.sleep(jittered_s)
            wait_s *= 2
        raise SlowServerError(f"no answer of the Llama's server at {self.config.url} in time")

    async def _send_once(self, loop: _Loop, method: str, path: str, body: bytes | None) -> tuple[int, Any]:
        headers = {} if body is None else {"Content-Type": "application/json"}
        async with loop.client.stream(method, path, content=body, headers=headers) as response:
            content = bytearray()
            if response.headers.get("Content-Encoding", "identity") != "identity":
                # Not asked for: a few compressed bytes can stand for more than the memory holds.
                raise UnexpectedAnswerError("the Llama's server compressed its answer")
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    raise UnexpectedAnswerError(f"the Llama's server answered more than {MAX_ANSWER_BYTES >> 20} MiB")
            if response.status_code != 200:
                return response.status_code, None  # an error may repeat text of the request
        try:
            return 200, json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UnexpectedAnswerError("the answer of the Llama's server is no JSON") from error


class _Loop:
    """An event loop in its own thread, and the HTTP client that runs on it."""

    def __init__(self, config: ServerConfig) -> None:
        import httpx2

        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.slots = asyncio.Semaphore(config.max_in_flight)
        self.client = httpx2.AsyncClient(
            base_url=config.url,
            headers={"Accept-Encoding": "identity"}
            | ({} if config.api_key is None else {"Authorization": f"Bearer {config.api_key}"}),
            limits=httpx2.Limits(max_connections=config.max_in_flight, max_keepalive_connections=config.max_in_flight),
            timeout=httpx2.Timeout(None, connect=config.connect_timeout_s),  # the deadline limits the rest
            trust_env=False,
            follow_redirects=False,
        )
        self._thread = threading.Thread(target=self._run, name="mechm-llama-server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Cancel all requests, then end the loop. A forked child has neither, so nothing is done there."""
        if self.pid != os.getpid() or self.loop.is_closed():
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            self.loop.run_forever()
            self.loop.run_until_complete(self._cancel_all())
        finally:
            self.loop.close()

    async def _cancel_all(self) -> None:
        pending = asyncio.all_tasks() - {asyncio.current_task()}
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await self.client.aclose()
        await asyncio.sleep(0)  # sockets are closed in the loop's next iteration
