"""Requests over HTTP: which addresses are allowed, time limits, and errors that name no credentials.

HTTPS everywhere, HTTP to this machine alone. A redirect leads to HTTPS, or from this machine to this machine, and
credentials are not sent there. Proxies are those of the environment (`https_proxy`). Nothing here writes to the disk.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import time
from collections.abc import Callable, Mapping
from email.message import Message
from functools import cache
from http import HTTPStatus
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, unquote, urljoin, urlsplit, urlunsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from mechm_runtime.errors import BundleError, InputError

TIMEOUT_S = 30.0
"""Longest wait for a connection, and for the next bytes of it."""
ATTEMPTS = 4
"""Requests for one thing until an error that may pass is reported."""
PAUSE_S = 1.0
"""Wait before the second attempt; it doubles with each further one."""
MAX_REDIRECTS = 5
ENDED_EARLY = ConnectionError(0, "the connection ended early")

Open = Callable[[Mapping[str, str]], http.client.HTTPResponse]
"""Starts a request with headers of its own. Raises: ServerError."""


class ServerError(BundleError):
    """A server that refuses, or does not answer.

    status: of HTTP, 0 where there was no answer. may_pass: whether another attempt may succeed. challenge: the header
    `WWW-Authenticate`.
    """

    def __init__(self, message: str, *, hint: str = "", status: int = 0, may_pass: bool, challenge: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status, self.may_pass, self.challenge = status, may_pass, challenge


def shown(url: str) -> str:
    """An address as messages name it: without user, password, query and fragment, which may be secrets."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "the address"
    host = parts.netloc.rpartition("@")[2]
    text = urlunsplit(SplitResult(parts.scheme, host, parts.path, "", ""))
    return "".join(character if character.isprintable() else "?" for character in text)[:300]


def is_local(host: str) -> bool:
    """Whether a host's name is this machine's own."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(url: str) -> str:
    """The host that an address names, without its port."""
    return urlsplit(url).hostname or ""


def check_url(url: str, *, came_from: str = "") -> None:
    """Refuse addresses over which anybody could change what arrives.

    came_from: the address that redirected here.
    Raises: InputError.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise InputError(f"{shown(url)} is no address", hint="as in https://host/path") from error
    redirected = f"{shown(came_from)} redirects to " if came_from else ""
    if not host or any(character.isspace() or not character.isprintable() for character in url):
        raise InputError(f"{redirected}{shown(url)}, which is no address", hint="as in https://host/path")
    if came_from and is_local(host) and not is_local(host_of(came_from)):
        raise InputError(f"{redirected}{shown(url)}, which is this machine: refused")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_local(host)):
        raise InputError(
            f"{redirected}{shown(url)}: only https is allowed, and http to this machine",
            hint="use the https address; or download it yourself and give the file, with --sha256",
        )


def open_url(url: str, headers: Mapping[str, str], authorization: str = "") -> http.client.HTTPResponse:
    """Send a GET request and return the answer, whose body is not read yet.

    authorization: the header's value; a user and password in the address are sent as basic authentication.
    Raises: InputError: the address is not allowed. ServerError: refused, or no answer.
    """
    check_url(url)
    url, basic = _split_credentials(url)
    request = Request(url, headers={"User-Agent": "mechm", "Accept-Encoding": "identity", **headers})  # noqa: S310 - checked
    if value := authorization or basic:
        request.add_unredirected_header("Authorization", value)
    try:
        response: http.client.HTTPResponse = _opener(is_local(host_of(url))).open(request, timeout=TIMEOUT_S)
    except HTTPError as error:
        with error:
            raise _refused(url, error.code, error.headers.get("WWW-Authenticate", "")) from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError and time-outs are kinds of OSError
        raise no_answer(url, error) from error
    if response.headers.get("Content-Encoding", "identity") != "identity":
        response.close()
        raise ServerError(f"{shown(url)} sends an encoding that was not asked for", may_pass=False)
    return response


def read_url(url: str, max_bytes: int, open_it: Open) -> bytes:
    """A small body, asked for again where an error may pass.

    url: for messages. Raises: ServerError. BundleError: it is larger.
    """
    for attempt in range(ATTEMPTS):
        try:
            with open_it({}) as response:
                return _read_body(url, response, max_bytes)
        except ServerError as error:
            if not error.may_pass or attempt == ATTEMPTS - 1:
                raise
            time.sleep(PAUSE_S * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def no_answer(url: str, error: Exception) -> ServerError:
    """The error where a server cannot be reached, or the connection breaks."""
    reason = error.reason if isinstance(error, URLError) else error
    text = reason.strerror if isinstance(reason, OSError) and reason.strerror else type(reason).__name__
    return ServerError(
        f"{shown(url)} cannot be read: {text}",
        hint="check the network, and the proxy (https_proxy); what has arrived is kept: run this again to go on",
        may_pass=True,
    )


def _read_body(url: str, response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    try:
        content = response.read(max_bytes + 1)
    except (OSError, http.client.HTTPException) as error:
        raise no_answer(url, error) from error
    if len(content) > max_bytes:
        raise BundleError(f"{shown(url)} is larger than {max_bytes:,} bytes", hint="is it a bundle's address?")
    if response.length:
        raise no_answer(url, ENDED_EARLY)
    return content


def _refused(url: str, status: int, challenge: str) -> ServerError:
    phrase = HTTPStatus(status).phrase if status in {one.value for one in HTTPStatus} else ""
    hints = {
        401: "it wants a login: download it with its own tool and give the file or the OCI layout",
        403: "it may want a login: download it with its own tool and give the file or the OCI layout",
        404: "check the address",
    }
    may_pass = status in (408, 425, 429) or status >= 500
    return ServerError(
        f"{shown(url)} answers {status} {phrase}".rstrip(),
        hint=hints.get(status, "try again later" if may_pass else ""),
        status=status,
        may_pass=may_pass,
        challenge=challenge,
    )


def _split_credentials(url: str) -> tuple[str, str]:
    """The address without user and password, and the header that carries them."""
    parts = urlsplit(url)
    given, _, host = parts.netloc.rpartition("@")
    clean = urlunsplit(parts._replace(netloc=host, fragment=""))
    if not given:
        return clean, ""
    return clean, "Basic " + base64.b64encode(unquote(given).encode()).decode()


class _Redirects(HTTPRedirectHandler):
    max_redirections = MAX_REDIRECTS

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> Request | None:
        check_url(urljoin(req.full_url, newurl), came_from=req.full_url)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


@cache
def _opener(local: bool) -> OpenerDirector:
    """An opener for HTTP alone: the library's default one also opens files and FTP."""
    opener = OpenerDirector()
    handlers = (HTTPHandler, HTTPSHandler, HTTPDefaultErrorHandler, HTTPErrorProcessor, _Redirects)
    for handler in handlers:
        opener.add_handler(handler())
    if not local:
        opener.add_handler(ProxyHandler())
    return opener
