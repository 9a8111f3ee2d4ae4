"""Downloads that go on where they stopped, after a cut connection or in another run of the command.

An unfinished file lies in the downloads' folder under the name of its sha256 (of its address, where nobody said the
hash), so that the same file from another server goes on too. A file whose hash is known counts only once it has been
compared; without one, a download goes on only where the server says that the file is still the same (`If-Range`).
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mechm_runtime.bundle.open import file_sha256
from mechm_runtime.errors import BundleError
from mechm_runtime.fetch import http as web
from mechm_runtime.fetch.store import CHUNK_BYTES, GET_AGAIN, OnBytes
from mechm_runtime.system.atomic_write import write_atomically
from mechm_runtime.system.cache_dir import cache_dir

SLOWEST_BYTES_PER_S = 256
"""A server that sends less than this for `web.TIMEOUT_S` counts as hanging."""
PROGRESS_BYTES = 64 << 10
"""A connection that brought as much before it broke does not count as a failed attempt."""
RUN_AGAIN = "run this again: it goes on where it stopped"


@dataclass(frozen=True, slots=True)
class Download:
    """A file on a server.

    url: for messages. open_it: starts a request. size_bytes, sha256: None where they are not known. max_bytes: refuse a
    file that is larger.
    """

    url: str
    open_it: web.Open
    size_bytes: int | None
    sha256: str | None
    max_bytes: int

    @property
    def key(self) -> str:
        """The file's name in the downloads' folder."""
        return self.sha256 or "address-" + hashlib.sha256(self.url.encode()).hexdigest()


def downloads_folder() -> Path:
    """The folder of unfinished downloads, which only this user may read."""
    return cache_dir() / "downloads" / "bundles"


def check_space(folder: Path, n_bytes: int) -> None:
    """Refuse what does not fit on the disk. Raises: BundleError."""
    while not folder.exists():
        folder = folder.parent
    if n_bytes > (free := shutil.disk_usage(folder).free):
        raise BundleError(
            f"it has {n_bytes / 1e9:,.1f} GB, and the disk of {folder} has {free / 1e9:,.1f} GB left",
            hint="make room, or name another disk: --out DIR, and MECHM_CACHE for unfinished downloads",
        )


def download(item: Download, on_bytes: OnBytes) -> Path:
    """Download a file whole, or what is missing of it.

    Returns: its path in the downloads' folder; whoever needs it takes it away from there.
    Raises: BundleError: refused, another size or hash than announced, too large, or the connection keeps breaking.
        OSError: it cannot be written.
    """
    folder = downloads_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    done = folder / item.key
    if item.sha256 is not None and done.is_file() and file_sha256(done) == item.sha256:
        on_bytes(done.stat().st_size)
        return done
    with _locked(done.with_name(f"{item.key}.part")) as file:
        was_begun = _length(file) > 0
        _complete(item, file, on_bytes)
        if not _has_hash(item, file) and was_begun:
            _start_over(file, on_bytes)  # what an earlier run left may be of another file
            _complete(item, file, on_bytes)
        if not _has_hash(item, file):
            _start_over(file, on_bytes)
            raise BundleError(f"{web.shown(item.url)} has another sha256 than announced: refused", hint=GET_AGAIN)
        if sys.platform != "win32":
            Path(file.name).replace(done)
    if sys.platform == "win32":  # which renames no open file
        Path(file.name).replace(done)
    _validator_file(file).unlink(missing_ok=True)
    return done


def _complete(item: Download, file: BinaryIO, on_bytes: OnBytes) -> None:
    """Request what is missing until the file is whole."""
    on_bytes(_length(file))
    failures = 0
    while True:
        before = _length(file)
        try:
            if _receive(item, file, on_bytes):
                return
            error = web.no_answer(item.url, web.ENDED_EARLY)
        except web.ServerError as caught:
            error = caught
            if error.status == 416:  # the file is shorter than what we have of it
                _start_over(file, on_bytes)
            elif not error.may_pass:
                raise
        failures = 1 if _length(file) - before >= PROGRESS_BYTES else failures + 1
        if failures == web.ATTEMPTS:
            raise BundleError(f"{error} ({_length(file):,} bytes are kept)", hint=RUN_AGAIN) from error
        time.sleep(web.PAUSE_S * 2 ** (failures - 1))


def _receive(item: Download, file: BinaryIO, on_bytes: OnBytes) -> bool:
    """Make one request for the rest of the file; returns whether the file is whole."""
    if item.size_bytes is not None and _length(file) > item.size_bytes:
        _start_over(file, on_bytes)
    validator = _read_validator(file)
    if item.sha256 is None and not validator:
        _start_over(file, on_bytes)
    offset = _length(file)
    if offset and offset == item.size_bytes:
        return True
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    if offset and validator:
        headers["If-Range"] = validator
    with item.open_it(headers) as response:
        if offset and not _goes_on(response, offset):
            if response.status == 206:
                raise web.ServerError(f"{web.shown(item.url)} sends another range than asked for", may_pass=False)
            _start_over(file, on_bytes)
            offset = 0
        total = None if response.length is None else offset + response.length
        _check_size(item, total)
        _write_validator(file, response)
        _write_body(item, file, response, on_bytes)
    return _length(file) == (total if item.size_bytes is None and total is not None else item.size_bytes) or (
        total is None and item.size_bytes is None
    )


def _goes_on(response: http.client.HTTPResponse, offset: int) -> bool:
    found = re.fullmatch(r"bytes (\d+)-\d+/(?:\d+|\*)", response.headers.get("Content-Range", ""))
    return response.status == 206 and found is not None and int(found[1]) == offset


def _check_size(item: Download, total: int | None) -> None:
    """Refuse an announced size before any of it is read."""
    if total is None:
        return
    if item.size_bytes is not None and total != item.size_bytes:
        raise BundleError(
            f"{web.shown(item.url)} has {total:,} bytes, and {item.size_bytes:,} were announced", hint=GET_AGAIN
        )
    if total > item.max_bytes:
        raise _too_large(item)
    check_space(downloads_folder(), total)


def _write_body(item: Download, file: BinaryIO, response: http.client.HTTPResponse, on_bytes: OnBytes) -> None:
    limit = item.max_bytes if item.size_bytes is None else item.size_bytes
    since, arrived, length = time.monotonic(), 0, _length(file)
    while True:
        try:
            chunk = response.read1(CHUNK_BYTES)  # returns what is there, so that a trickle is noticed
        except (OSError, http.client.HTTPException) as error:
            raise web.no_answer(item.url, error) from error
        if not chunk:
            return
        length += len(chunk)
        if length > limit:
            raise _too_large(item)
        file.write(chunk)
        on_bytes(len(chunk))
        arrived += len(chunk)
        if (waited := time.monotonic() - since) > web.TIMEOUT_S:
            if arrived < SLOWEST_BYTES_PER_S * waited:
                raise web.no_answer(item.url, TimeoutError(0, f"{arrived:,} bytes in {waited:.0f} s"))
            since, arrived = time.monotonic(), 0


def _too_large(item: Download) -> BundleError:
    limit = item.max_bytes if item.size_bytes is None else item.size_bytes
    return BundleError(f"{web.shown(item.url)} is larger than {limit:,} bytes: refused", hint=GET_AGAIN)


def _has_hash(item: Download, file: BinaryIO) -> bool:
    file.flush()
    return item.sha256 is None or file_sha256(Path(file.name)) == item.sha256


def _length(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _start_over(file: BinaryIO, on_bytes: OnBytes) -> None:
    on_bytes(-_length(file))
    file.truncate(0)
    _validator_file(file).unlink(missing_ok=True)


def _validator_file(file: BinaryIO) -> Path:
    """The file beside a download that holds its entity tag or date (RFC 9110, 13.1.5)."""
    return Path(file.name).with_suffix(".version")


def _read_validator(file: BinaryIO) -> str:
    with suppress(OSError, ValueError):
        return _validator_file(file).read_text(encoding="ascii")
    return ""


def _write_validator(file: BinaryIO, response: http.client.HTTPResponse) -> None:
    tag = response.headers.get("ETag", "")
    value = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")
    if value.isascii() and value.isprintable():
        write_atomically(_validator_file(file), value)


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """An unfinished download, opened for appending, that no other process writes to (not checked on Windows).

    Raises: BundleError: another process does.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0), 0o600)
        with os.fdopen(descriptor, "rb+", closefd=True, buffering=0) as raw:
            _lock(raw.fileno(), path)
            with suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(raw.fileno())):
                    with path.open("ab") as file:
                        yield file
                    return


def _lock(descriptor: int, path: Path) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise BundleError(
            f"another process downloads the same file ({path.name[:20]}...)", hint="wait until it is done"
        ) from error
