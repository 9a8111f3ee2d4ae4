"""Read a bundle: a folder with `bundle.json` and the files it lists, the only thing export hands to the runtime.

Opening checks everything before anything is used: schema, labels, paths that stay inside the folder, no links, sizes
and sha256 of every file. It runs no model (`engine`) and writes nothing (`mechm_export.bundle.write`).
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from mechm_runtime.bundle.from_json import read_value
from mechm_runtime.bundle.location import default_bundle_path, is_folder, locate_bundle, missing_hint
from mechm_runtime.bundle.manifest import MANIFEST, REBUILD, SCHEMA_VERSION, Bundle, build_bundle, read_manifest
from mechm_runtime.errors import BundleError, InputError
from mechm_runtime.system.progress import Progress

MAX_SHOWN = 200
"""Characters of a damaged manifest that an error repeats."""


def open_bundle(
    path: Path | str | None = None, *, check_hashes: bool = True, on_progress: Progress | None = None
) -> Bundle:
    """Open and check a bundle.

    path: the bundle's folder, or `package:NAME` for one that is installed; None for `default_bundle_path`.
    check_hashes: False skips sha256 of the files (sizes are still checked), for a caller that has just checked them.
    on_progress: called as files are hashed.
    Raises: BundleError: missing, incomplete, changed, unsafe or newer than this library.
    """
    folder = default_bundle_path() if path is None else locate_bundle(str(path))
    if not is_folder(folder):
        raise BundleError(f"no bundle at {folder}", hint=missing_hint(path))
    manifest = read_manifest(folder)
    version = manifest.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"{MANIFEST} has no schema version", hint=REBUILD)
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"this bundle has schema {version}, this library reads up to {SCHEMA_VERSION}",
            hint="pip install --upgrade mechm",
        )
    try:
        bundle = build_bundle(folder, manifest)
        files = {
            name: (read_value(f["size_bytes"], int), read_value(f["sha256"], str))
            for name, f in manifest["files"].items()
        }
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError, InputError) as error:
        reason = f"{type(error).__name__}: {error}"[:MAX_SHOWN]
        raise BundleError(f"{MANIFEST} is damaged: {reason}", hint=REBUILD) from error
    _check_files(folder, files, check_hashes=check_hashes, on_progress=on_progress)
    return bundle


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_files(
    folder: Path, files: Mapping[str, tuple[int, str]], *, check_hashes: bool, on_progress: Progress | None
) -> None:
    """Compare files with their listed size and sha256.

    Raises: BundleError.
    """
    paths = {name: inside(folder, name) for name in files}
    for name, path in paths.items():
        try:
            size = path.stat().st_size
        except OSError as error:
            raise BundleError(f"the bundle's {name} is missing", hint=REBUILD) from error
        if size != files[name][0]:
            raise BundleError(f"the bundle's {name} was changed: {size:,} bytes, not {files[name][0]:,}", hint=REBUILD)
    if not check_hashes:
        return
    done, total = 0, sum(size for size, _ in files.values())
    # hashlib releases the GIL, so threads read and hash in parallel.
    with ThreadPoolExecutor(4) as pool:
        digests = pool.map(file_sha256, paths.values())
        try:
            for name, digest in zip(paths, digests, strict=True):
                if digest != files[name][1]:
                    raise BundleError(f"the bundle's {name} was changed: its sha256 differs", hint=REBUILD)
                done += files[name][0]
                if on_progress is not None:
                    on_progress("checking hashes", done, total)
        except OSError as error:
            raise BundleError(f"a file of the bundle cannot be read: {error.strerror}", hint=REBUILD) from error


def inside(folder: Path, name: str) -> Path:
    """A listed file's path in a bundle's folder.

    Raises: BundleError: the name leaves the folder, or passes a link or something else than folders and a plain file.
    """
    pure = PurePosixPath(name)
    odd = "\\" in name or ":" in name or "\0" in name
    if odd or not pure.parts or pure.is_absolute() or ".." in pure.parts or str(pure) != name:
        raise BundleError(f"the bundle lists a path that leaves its folder: {name[:80]!r}", hint=REBUILD)
    path = folder
    for position, step in enumerate(pure.parts, start=1):
        path = path / step
        try:
            mode = path.lstat().st_mode
        except OSError:
            break  # missing files are reported where they are read
        plain = stat.S_ISREG if position == len(pure.parts) else stat.S_ISDIR
        if not plain(mode):
            raise BundleError(f"the bundle's {name} is a link or a special file, not a plain one", hint=REBUILD)
    return folder.joinpath(*pure.parts)
