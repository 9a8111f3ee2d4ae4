"""A small HTTP server in the place of vLLM that misbehaves in a way that can be changed while it runs.

`serve()` starts it in a thread. Modes are the names in `CHANGES` (answers with odd values), `STATUS n`, and the ways to
be slow or broken in `Server._misbehave`; `ok` answers as vLLM does.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

MODEL = "mechm-llama"
Choices = list[dict[str, Any]]


def _first_value(value: Any) -> Callable[[Choices], object]:
    """A change of the first log-probability of the first choice."""

    def change(choices: Choices) -> None:
        found = choices[0]["logprobs"]["top_logprobs"][0]
        found[next(iter(found))] = value

    return change


def _every_value(value: Any) -> Callable[[Choices], object]:
    def change(choices: Choices) -> None:
        found = choices[0]["logprobs"]["top_logprobs"][0]
        found.update(dict.fromkeys(found, value))

    return change


def _index(value: Any) -> Callable[[Choices], object]:
    return lambda choices: choices[0].update(index=value)


CHANGES: dict[str, Callable[[Choices], object]] = {
    "value 10**400": _first_value(10**400),
    "value -10**400": _first_value(-(10**400)),
    "value 1e308": _first_value(1e308),
    "value -1e308": _first_value(-1e308),
    "value nan": _first_value(float("nan")),
    "value inf": _first_value(float("inf")),
    "value -inf": _first_value(float("-inf")),
    "value text": _first_value("-1.0"),
    "value null": _first_value(None),
    "value true": _first_value(True),
    "value list": _first_value([]),
    "value dict": _first_value({}),
    "values -inf": _every_value(float("-inf")),
    "values 1e30": _every_value(1e30),
    "values -1e308": _every_value(-1e308),
    "index list": _index([]),
    "index dict": _index({}),
    "index text": _index("0"),
    "index null": _index(None),
    "index true": _index(True),
    "index float": _index(0.5),
    "index 10**400": _index(10**400),
    "index twice": _index(1),
    "logprobs list": lambda choices: choices[0].update(logprobs=[]),
    "top_logprobs number": lambda choices: choices[0]["logprobs"].update(top_logprobs=5),
    "top_logprobs two": lambda choices: choices[0]["logprobs"].update(top_logprobs=[{}, {}]),
    "top_logprobs names": lambda choices: choices[0]["logprobs"].update(top_logprobs=[{"hello": -1.0}]),
    "token of 5000 digits": lambda choices: choices[0]["logprobs"].update(
        top_logprobs=[{f"token_id:{'9' * 5000}": -1.0}]
    ),
    "choices fewer": lambda choices: choices.pop(),
    "choices 100,000": lambda choices: choices.extend([{}] * 100_000),
}
BODIES = {
    "body html": b"<html>",
    "body deep": b"[" * 200_000,
    "body digits": b"9" * 100_000,
    "body list": b"[]",
    "body null": b"null",
    "body empty": b"",
    "body half": b'{"choices": [{"index": 0, "logp',
    "body no text": b"\xff\xfe\x00\x80",
    "body 17 MiB": b" " * (17 << 20),
}
"""Answers with status 200."""
SLOW = ("hang", "drip", "drip head", "chunks without end")
BROKEN = ("close", "cut off", "garbage", "header of 1 MiB", "gzip")


def answer(body: bytes, change: Callable[[Choices], object] | None = None) -> bytes:
    """vLLM's answer to a scoring request, with a change."""
    asked = json.loads(body)
    found = {f"token_id:{token}": -1.0 - token % 7 for token in asked["logprob_token_ids"]}
    choices = [
        {"index": n, "logprobs": {"top_logprobs": [dict(found)]}}
        for n in range(len(asked.get("prompt") or asked["prompt_embeds"]))
    ]
    if change is not None:
        change(choices)
    return json.dumps({"choices": choices}).encode()


def response(body: bytes, status: str = "200 OK", header: str = "") -> bytes:
    """An HTTP response of JSON."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{header}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Server:
    """mode: of the answers to questions; models: of those to /v1/models. n_asked: questions so far."""

    def __init__(self) -> None:
        self.mode = "ok"
        self.models = "ok"
        self.n_asked = 0
        self.url = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._answer_one(reader, writer):
                    pass
        finally:
            if self.mode in SLOW:
                writer.transport.abort()  # what nobody reads would hold the connection open
            writer.close()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; returns whether the connection stays."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin1").lower()
        n_bytes = next((int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length")), 0)
        body = await reader.readexactly(n_bytes)
        if "/v1/models" in head:
            mode, good = self.models, json.dumps({"data": [{"id": MODEL}]}).encode()
        else:
            mode, good = self.mode, answer(body)
            self.n_asked += 1
        if mode in CHANGES:
            writer.write(response(answer(body, CHANGES[mode])))
        elif mode in BODIES:
            writer.write(response(BODIES[mode]))
        elif mode.startswith("STATUS"):
            writer.write(response(b'{"error": "secret words"}', f"{mode.split()[1]} Nope"))
        elif mode != "ok":
            return await self._misbehave(mode, writer, good)
        else:
            writer.write(response(good))
        await writer.drain()
        return True

    async def _misbehave(self, mode: str, writer: asyncio.StreamWriter, good: bytes) -> bool:
        """Be slow, or break off."""
        if mode == "hang":
            await asyncio.sleep(3600)
        elif mode == "drip":
            for byte in response(good):
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.1)
        elif mode in ("drip head", "chunks without end"):
            is_head = mode == "drip head"
            writer.write(b"HTTP/1.1 200 OK\r\n" + (b"" if is_head else b"Transfer-Encoding: chunked\r\n\r\n"))
            while True:
                writer.write(b"X: y\r\n" if is_head else b"1\r\n \r\n")
                await writer.drain()
                await asyncio.sleep(0.02)
        elif mode == "cut off":
            writer.write(response(good)[:-10])
        elif mode == "garbage":
            writer.write(bytes(range(256)) * 16)
        elif mode == "header of 1 MiB":
            writer.write(b"HTTP/1.1 200 OK\r\nX: " + b"a" * (1 << 20))
        elif mode == "gzip":
            bomb = gzip.compress(gzip.compress(bytes(64 << 20)))
            writer.write(response(bomb, header="Content-Encoding: gzip, gzip\r\n"))
        await writer.drain()
        return False


@contextmanager
def serve() -> Iterator[Server]:
    """The server, running in a thread."""
    server = Server()
    loop = asyncio.new_event_loop()
    listening = loop.run_until_complete(asyncio.start_server(server.handle, "127.0.0.1", 0))
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def end() -> None:
        listening.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0.01)  # sockets are closed in the loop's next iterations

    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
