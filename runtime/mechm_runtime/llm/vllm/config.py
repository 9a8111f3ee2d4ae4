"""Where a vLLM server is, and how patiently it is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from mechm_runtime.errors import InputError

MODEL = "mechm-llama"
"""The name under which `mechm serve llm` serves it."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """A server and the limits on asking it.

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
