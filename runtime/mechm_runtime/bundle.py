"""Read a bundle: a folder with `bundle.json` and the files it lists, the only thing export hands to the runtime.

Opening checks everything before anything is used: schema, labels, paths that stay inside the folder, no links, sizes
and sha256 of every file. It runs no model (`engine`) and writes nothing (`mechm_export.bundle`).
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mechm_runtime.cache import cache_dir
from mechm_runtime.decision import DecisionConfig
from mechm_runtime.errors import BundleError
from mechm_runtime.features.faces import FaceConfig
from mechm_runtime.features.log_mel import LogMelConfig
from mechm_runtime.features.scene import SceneConfig
from mechm_runtime.text import TextConfig
from mechm_runtime.types import EMOTIONS

SCHEMA_VERSION = 1
MANIFEST = "bundle.json"
MAX_MANIFEST_BYTES = 4 << 20
REBUILD = "make it again: mechm export bundle --preset small --out DIR"

PRECISIONS: tuple[str, ...] = ("fp32", "int8")


@dataclass(frozen=True, slots=True)
class FusionWindows:
    """How the fusion reads conversations, and the shapes it wants.

    window, window_context: utterances read at once, and how many on each side of a window's core are context.
    n_frames, max_faces: frames an utterance, and faces a frame.
    audio_tokens, audio_width, scene_width, text_width, face_width: sizes of what it reads.
    """

    window: int
    window_context: int
    n_frames: int
    max_faces: int
    audio_tokens: int
    audio_width: int
    scene_width: int
    text_width: int
    face_width: int

    def __post_init__(self) -> None:
        if min(asdict(self).values()) < 1 or self.window <= 2 * self.window_context:
            raise ValueError("sizes must be positive, and a window wider than its context")


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of a graph: axes are sizes, or names where they are dynamic."""

    name: str
    dtype: str
    axes: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class PartFiles:
    """One exported part.

    files: precision -> path inside the bundle. default: the precision to run where none is asked for.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    files: Mapping[str, str]
    default: str


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle; `manifest` is all of `bundle.json`."""

    folder: Path
    id: str
    preset: str
    parts: Mapping[str, PartFiles]
    text: TextConfig
    log_mel: LogMelConfig
    scene: SceneConfig
    faces: FaceConfig
    fusion: FusionWindows
    decision: DecisionConfig
    manifest: Mapping[str, Any]

    def path(self, name: str) -> Path:
        """Where a listed file lies."""
        return self.folder.joinpath(*PurePosixPath(name).parts)


def default_bundle_path() -> Path:
    """`MECHM_BUNDLE` where it is set, else the bundle that `make demo` builds in the user's cache folder."""
    if named := os.environ.get("MECHM_BUNDLE"):
        return Path(named)
    return cache_dir() / "bundles" / "small"


def open_bundle(path: Path | None = None, *, check_hashes: bool = True) -> Bundle:
    """Open and check a bundle.

    path: the bundle's folder; None for `default_bundle_path`.
    check_hashes: False skips sha256 of the files (sizes are still checked), for a caller that has just checked them.
    Raises: BundleError: missing, incomplete, changed, unsafe or newer than this library.
    """
    folder = Path(path) if path is not None else default_bundle_path()
    if not folder.is_dir():
        hint = "make demo" if path is None else "give the folder that `mechm export bundle` wrote"
        raise BundleError(f"no bundle at {folder}", hint=hint)
    manifest = _read_manifest(folder)
    version = manifest.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"{MANIFEST} has no schema version", hint=REBUILD)
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"this bundle has schema {version}, this library reads up to {SCHEMA_VERSION}",
            hint="pip install --upgrade mechm",
        )
    try:
        bundle = _build(folder, manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{MANIFEST} is damaged: {type(error).__name__}: {error}", hint=REBUILD) from error
    _check_files(folder, manifest["files"], check_hashes=check_hashes)
    return bundle


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def manifest_id(preset: str, manifest: Mapping[str, Any]) -> str:
    """The bundle's id: preset and 12 hexadecimal digits of the manifest's own sha256 (without the id)."""
    content = {key: value for key, value in manifest.items() if key != "id"}
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return f"{preset}-{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    _refuse_link(path)
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{MANIFEST} is larger than {MAX_MANIFEST_BYTES >> 20} MiB")
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}", hint=REBUILD) from error
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST} cannot be read: {type(error).__name__}", hint=REBUILD) from error
    if not isinstance(manifest, dict):
        raise BundleError(f"{MANIFEST} is not a JSON object", hint=REBUILD)
    return manifest


def _build(folder: Path, manifest: Mapping[str, Any]) -> Bundle:
    if tuple(manifest["labels"]) != EMOTIONS:
        raise ValueError(f"labels are {manifest['labels']}, this library has {list(EMOTIONS)}")
    preset = str(manifest["preset"])
    if manifest["id"] != manifest_id(preset, manifest):
        raise BundleError(f"{MANIFEST} was changed after it was written", hint=REBUILD)
    parts = {name: _part(name, part) for name, part in manifest["parts"].items()}
    listed = set(manifest["files"])
    for part in parts.values():
        unlisted = sorted(set(part.files.values()) - listed)
        if unlisted:
            raise ValueError(f"part {part.name} names {unlisted[0]}, which is not listed")
    preprocessing = manifest["preprocessing"]
    decision = dict(manifest["decision"])
    return Bundle(
        folder=folder,
        id=str(manifest["id"]),
        preset=preset,
        parts=parts,
        text=TextConfig(**preprocessing["text"]),
        log_mel=LogMelConfig(**preprocessing["log_mel"]),
        scene=SceneConfig(**_tuples(preprocessing["scene"])),
        faces=FaceConfig(**_tuples(preprocessing["faces"])),
        fusion=FusionWindows(**preprocessing["fusion"]),
        decision=DecisionConfig(**{**decision, "emotion_bias": tuple(decision["emotion_bias"])}),
        manifest=manifest,
    )


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _part(name: str, part: Mapping[str, Any]) -> PartFiles:
    files = {str(precision): str(path) for precision, path in part["files"].items()}
    default = str(part["default"])
    if default not in files:
        raise ValueError(f"part {name} has no file of its default precision {default}")
    inputs, outputs = (
        tuple(Tensor(t["name"], t["dtype"], tuple(t["axes"])) for t in part[key]) for key in ("inputs", "outputs")
    )
    return PartFiles(name, inputs, outputs, files, default)


def _check_files(folder: Path, files: Mapping[str, Mapping[str, Any]], *, check_hashes: bool) -> None:
    for name, facts in files.items():
        path = _inside(folder, name)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise BundleError(f"the bundle's {name} is missing", hint=REBUILD) from error
        if size != facts.get("size_bytes"):
            raise BundleError(
                f"the bundle's {name} was changed: {size:,} bytes, not {facts.get('size_bytes')}", hint=REBUILD
            )
    if check_hashes:
        # hashlib releases the GIL, so threads read and hash in parallel.
        with ThreadPoolExecutor(4) as pool:
            for name, digest in zip(files, pool.map(lambda n: file_sha256(_inside(folder, n)), files), strict=True):
                if digest != files[name].get("sha256"):
                    raise BundleError(f"the bundle's {name} was changed: its sha256 differs", hint=REBUILD)


def _inside(folder: Path, name: str) -> Path:
    """The listed file's path.

    Raises: BundleError: the name leaves the folder or passes a link.
    """
    pure = PurePosixPath(name)
    odd = "\\" in name or ":" in name or "\0" in name
    if odd or not pure.parts or pure.is_absolute() or ".." in pure.parts or str(pure) != name:
        raise BundleError(f"the bundle lists a path that leaves its folder: {name[:80]!r}", hint=REBUILD)
    for step in _steps(folder, pure):
        _refuse_link(step)
    return folder.joinpath(*pure.parts)


def _steps(folder: Path, pure: PurePosixPath) -> Iterator[Path]:
    path = folder
    for part in pure.parts:
        path = path / part
        yield path


def _refuse_link(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return  # a missing file is reported by its reader, with its name
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise BundleError(f"the bundle's {path.name} is a link or a special file, not a plain one", hint=REBUILD)
