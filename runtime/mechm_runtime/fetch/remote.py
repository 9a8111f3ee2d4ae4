"""A folder on a web server as a store, and the downloading of several files that stores on servers share."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from urllib.parse import quote, urlsplit, urlunsplit

from mechm_runtime.errors import BundleError
from mechm_runtime.fetch import http as web
from mechm_runtime.fetch.download import Download, check_space, download, downloads_folder
from mechm_runtime.fetch.store import OnBytes, Wanted


class WebStore:
    """A folder on a web server: a file's name is added to the address."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.place = web.shown(url)

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """See `Store`."""
        url = self._address(name)
        try:
            return web.read_url(url, max_bytes, partial(web.open_url, url))
        except web.ServerError as error:
            if error.status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
                return None
            raise

    def copy(self, files: Sequence[Wanted], on_bytes: OnBytes) -> None:
        """See `Store`."""
        download_all(
            files, lambda one: (self._address(one.name), partial(web.open_url, self._address(one.name))), on_bytes
        )

    def _address(self, name: str) -> str:
        parts = urlsplit(self._url)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))


def download_all(files: Sequence[Wanted], locate: Callable[[Wanted], tuple[str, web.Open]], on_bytes: OnBytes) -> None:
    """Download every file, and only then move them to their targets: what has arrived is kept where one fails.

    locate: gives a file's address and starts its requests.
    Raises: BundleError: as `download`, or they do not fit on the disk.
    """
    by_hash = {one.sha256: one for one in files}
    if len({(one.sha256, one.size_bytes) for one in files}) != len(by_hash):
        raise BundleError("files of one sha256 are listed with several sizes")
    check_space(downloads_folder(), sum(one.size_bytes for one in by_hash.values()))
    here = {}
    for one in by_hash.values():
        url, open_it = locate(one)
        here[one.sha256] = download(Download(url, open_it, one.size_bytes, one.sha256, one.size_bytes), on_bytes)
    for one in files:
        one.target.parent.mkdir(parents=True, exist_ok=True)
        if by_hash[one.sha256] is not one:
            shutil.copyfile(here[one.sha256], one.target)
    for one in by_hash.values():
        shutil.move(here[one.sha256], one.target)
