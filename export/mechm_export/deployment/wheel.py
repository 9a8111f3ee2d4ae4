"""Packing a bundle into a wheel, for machines that install all software from wheels, without a network.

The wheel holds a package with the bundle, and registers it under an entry point group that the runtime reads
(`mechm_runtime.bundle.installed`). Files are stored, not deflated: weights hardly shrink, and the result of zlib
depends on its build. Equal bundles give equal bytes. Format: PEP 427, core metadata 2.1.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import stat
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import InvalidName, canonicalize_name
from packaging.version import InvalidVersion, Version

from mechm_export.deployment.contents import Contents
from mechm_runtime.bundle.installed import ENTRY_POINTS, FOLDER, SCHEME
from mechm_runtime.bundle.manifest import Bundle
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.bundle.staging import check_new, staging_folder
from mechm_runtime.errors import InputError
from mechm_runtime.system.progress import Progress

EARLIEST = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip archive can state."""


@dataclass(frozen=True, slots=True)
class WheelName:
    """Names of a distribution: for pip, for Python's import, and its version."""

    distribution: str
    package: str
    version: str

    @property
    def file(self) -> str:
        """The wheel's file name."""
        return f"{self.package}-{self.version}-py3-none-any.whl"

    @property
    def info(self) -> str:
        """The folder of the metadata."""
        return f"{self.package}-{self.version}.dist-info"


def wheel_name(bundle: Bundle, name: str | None = None) -> WheelName:
    """The names of a bundle's wheel.

    The version is the schema's, with the bundle's hash as the local part of PEP 440; the hash follows a letter, since
    PEP 440 drops leading zeros from numbers.
    name: of the distribution; None for `mechm-bundle-PRESET`.
    Raises: InputError: the name is not valid for a distribution.
    """
    wanted = name or f"mechm-bundle-{bundle.preset}"
    try:
        distribution = canonicalize_name(wanted, validate=True)
    except InvalidName as error:
        raise InputError(f"{wanted!r} is no name for a distribution", hint="letters, digits and -: --name") from error
    package = distribution.replace("-", "_")
    if not package.isidentifier():
        raise InputError(f"{wanted!r} is no name for a Python package", hint="begin with a letter: --name")
    digest = bundle.id.rpartition("-")[2]
    return WheelName(distribution, package, f"{bundle.manifest['schema_version']}+g{digest}")


def write_wheel(folder: Path, out: Path, *, name: str | None = None, on_progress: Progress | None = None) -> Path:
    """Write a bundle's wheel.

    out: a folder, or the wheel's own path, whose name is then checked. name: as for `wheel_name`.
    Returns: path of the wheel.
    Raises: InputError: a name that is not valid for a wheel. BundleError: damaged, or the wheel exists or cannot be
        written.
    """
    names = wheel_name(open_bundle(folder, check_hashes=False), name)
    if out.suffix == ".whl" and out.name != names.file:
        raise InputError(f"pip installs no wheel called {out.name}", hint=f"call it {names.file}, or give its folder")
    path = (out if out.suffix == ".whl" else out / names.file).absolute()
    check_new(path)
    bundle = open_bundle(folder, on_progress=on_progress)
    with staging_folder(path) as staging:
        wheel = staging / path.name
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_STORED) as archive:
            _write_files(archive, names, Contents(bundle, "packing", on_progress))
        wheel.replace(path)
    return path


def _write_files(archive: zipfile.ZipFile, names: WheelName, contents: Contents) -> None:
    record: list[tuple[str, str, int]] = []

    def add(name: str, size: int, sha256: bytes, chunks: Iterable[bytes]) -> None:
        entry = zipfile.ZipInfo(name, EARLIEST)
        entry.external_attr = (stat.S_IFREG | 0o644) << 16
        entry.create_system = 3  # Unix, on every system
        entry.file_size = size
        with archive.open(entry, "w") as file:
            for chunk in chunks:
                file.write(chunk)
        record.append((name, f"sha256={base64.urlsafe_b64encode(sha256).rstrip(b'=').decode()}", size))

    def add_text(name: str, text: str) -> None:
        content = text.encode()
        add(name, len(content), hashlib.sha256(content).digest(), [content])

    bundle = contents.bundle
    add_text(f"{names.package}/__init__.py", '"""A bundle, which mechm_runtime finds without importing this."""\n')
    for name in contents.names:
        digest = bytes.fromhex(contents.sha256(name))
        add(f"{names.package}/{FOLDER}/{name}", contents.size_bytes(name), digest, contents.chunks(name))
    add_text(f"{names.info}/METADATA", _metadata(names, bundle))
    add_text(f"{names.info}/WHEEL", "Wheel-Version: 1.0\nGenerator: mechm\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    add_text(f"{names.info}/entry_points.txt", f"[{ENTRY_POINTS}]\n{names.distribution} = {names.package}\n")
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([*record, (f"{names.info}/RECORD", "", "")])
    add_text(f"{names.info}/RECORD", lines.getvalue())


def _metadata(names: WheelName, bundle: Bundle) -> str:
    try:
        needs = f"mechm>={Version(str(bundle.manifest['versions']['mechm'])).public}"
    except (InvalidVersion, KeyError, TypeError):
        needs = "mechm"
    licences = [f"- {part}: {licence}" for part, licence in bundle.manifest.get("licences", {}).items()]
    return (
        "Metadata-Version: 2.1\n"
        f"Name: {names.distribution}\n"
        f"Version: {names.version}\n"
        f"Summary: {_line(f'The bundle {bundle.id}, for mechm')}\n"
        "Requires-Python: >=3.11\n"
        f"Requires-Dist: {needs}\n"
        "Description-Content-Type: text/markdown\n"
        "\n"
        f'`Pipeline.from_bundle("{SCHEME}{names.distribution}")`, or `MECHM_BUNDLE={SCHEME}{names.distribution}`.\n'
        "\nLicences of what is inside:\n\n" + "".join(f"{_line(licence)}\n" for licence in licences)
    )


def _line(text: str) -> str:
    """Join text to one line of the metadata."""
    return " ".join(text.split())
