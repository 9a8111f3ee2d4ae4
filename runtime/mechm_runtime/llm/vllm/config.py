"""Address of a vLLM server, and time limits and retries for its clients."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from mechm_runtime.errors import InputError

MODEL = "mechm-llama"
"""Name of the model in `mechm serve llm`."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """A server and the limits of its clients.

    url: scheme, host and port. api_key: sent to the server; never printed. model: the server's name of it.
    timeout_s: for the answers on one window of a conversation, with the wait for one of `max_in_flight` slots.
    connect_timeout_s: for the connection, a part of `timeout_s`. max_in_flight: requests at once, of all threads.
    n_retries: after a refused connection or from a busy server, within `timeout_s`.
    backoff_s: time in which a server that failed is not asked; each further failure doubles it, up to `max_backoff_s`.
    """

    url: str = "http://127.0.0.1:8000"
    api_key: str | None = field(default=None, repr=False)
    model: str = MODEL
    timeout_s: float = 30.0
    connect_timeout_s: float = 2.0
    max_in_flight: int = 8
    n_retries: int = 2
    backoff_s: float = 1.0
    max_backoff_s: float = 30.0

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
        if (
            min(self.timeout_s, self.connect_timeout_s, self.backoff_s, self.max_backoff_s) <= 0
            or self.max_in_flight < 1
        ):
            raise ValueError("a timeout or a limit of the server is not positive")
        if self.n_retries < 0:
            raise ValueError(f"n_retries={self.n_retries} is negative")
