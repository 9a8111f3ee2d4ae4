"""Add TensorRT engines to a bundle: convert each part, judge it, build it, and put all of them in place at once.

What is built is kept in a folder beside the bundle until the bundle has it, so that an interrupted run goes on where it
stopped. A part whose answers change too much is left out. The ONNX that an engine was built from goes into the bundle
with it: a machine with another GPU or version builds its engine from that (`mechm_runtime.engines.tensorrt.engine`).
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mechm_export.bundle.manifest import file_facts, replace_manifest
from mechm_export.diagnose.layer_switches import SwitchedGraph
from mechm_export.gate.comparison import TaskCheck
from mechm_export.gate.fp32_reference import Fp32Reference
from mechm_export.gate.judge import CheckSet, problems_of
from mechm_export.precision.lower import LowerPrecision, lower_graph
from mechm_export.tensorrt.memory import estimate_memory
from mechm_export.tensorrt.shapes import shape_ranges
from mechm_runtime.bundle.engine_file import EngineFile, EngineKey, EnginePrecision
from mechm_runtime.bundle.manifest import ENGINES, Bundle
from mechm_runtime.bundle.open import file_sha256, open_bundle
from mechm_runtime.engines.tensorrt.build import build_into
from mechm_runtime.engines.tensorrt.engine import check_memory
from mechm_runtime.engines.tensorrt.engine_store import EngineStore
from mechm_runtime.engines.tensorrt.library import Gpu, Library, LibraryName, load_library, system_name, visible_gpu
from mechm_runtime.errors import BundleError, InputError, MissingExtraError, ProviderError, VerificationError
from mechm_runtime.system.progress import Progress

AMPERE = 80
"""From this compute capability on TensorRT-RTX has all precisions. For Turing (75) it refuses products in fp32, and has
no bfloat16 (its support matrix, and tried with 1.7.1)."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What is built.

    library: which TensorRT. parts: names, or none for all. compute_capabilities: of the GPUs, as in `86`; none for
    those the library can build for (from Ampere on), or that of the GPU at hand. kept: part -> nodes that stay in fp32.
    accept_quality_loss: build what changes too many answers too. jobs: engines built at once.
    """

    library: LibraryName
    precision: EnginePrecision = "fp16"
    parts: tuple[str, ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    kept: Mapping[str, Sequence[str]] = field(default_factory=dict)
    accept_quality_loss: bool = False
    jobs: int = 1


@dataclass(frozen=True, slots=True)
class EnginesReport:
    """What the bundle has now, and why a part was left out.

    built: how many engines were built; others were as the bundle, or an interrupted run, already had them.
    checks: part -> answers against fp32.
    """

    engines: tuple[EngineFile, ...]
    built: int
    checks: Mapping[str, Sequence[TaskCheck]]
    refused: Mapping[str, str]


def add_engines(
    folder: Path, settings: EngineSettings, checks: CheckSet, on_progress: Progress | None = None
) -> EnginesReport:
    """Build engines and put them into a bundle; others of the same part and library go.

    Raises: MissingExtraError: the library is not installed. ProviderError: it refuses a graph, or the GPU at hand is
        too small. InputError: a part or a compute capability that there is not. BundleError: damaged, or cannot be
        written. VerificationError: nothing reaches a part that is to be lowered, or every part was left out.
    """
    step = on_progress or (lambda _doing, _done, _total: None)
    library = load_library(settings.library)
    gpu = _gpu_of(library)
    capabilities = choose_capabilities(library, gpu, settings)
    bundle = open_bundle(folder)
    parts = settings.parts or tuple(bundle.parts)
    if unknown := sorted({*parts, *settings.kept} - set(bundle.parts)):
        raise InputError(f"the bundle has no part {unknown[0]}", hint=f"it has {', '.join(bundle.parts)}")
    with _written(folder), _workspace(folder) as workspace:
        sources, found, refused = _convert(bundle, parts, settings, checks, workspace.folder, step)
        if not sources:
            raise VerificationError(f"no part is good enough: {'; '.join(refused.values())}", hint=DIAGNOSE)
        engines = [
            _describe(bundle, part, source, library, capabilities, settings.precision)
            for part, source in sources.items()
        ]
        if gpu is not None and gpu.compute_capability in capabilities:
            for engine in engines:
                check_memory(engine, gpu)
        changed = [engine for engine in engines if engine not in bundle.engines]
        built = _build(library, changed, sources, workspace, settings.jobs, step)
        _put_in_place(bundle, engines, sources, found, workspace)
        workspace.done = True
    return EnginesReport(open_bundle(folder).engines, built, found, refused)


DIAGNOSE = "mechm export diagnose finds the layers to keep in fp32, for --keep; or --accept-quality-loss"


def choose_capabilities(library: Library, gpu: Gpu | None, settings: EngineSettings) -> tuple[str, ...]:
    """The compute capabilities to build for, sorted.

    gpu: the one at hand, where the library needs one.
    Raises: InputError: the library or the precision does not go with one.
    """
    asked = settings.compute_capabilities
    if gpu is not None and library.needs_gpu:
        if other := sorted(set(asked) - {gpu.compute_capability}):
            raise InputError(
                f"{library.name} builds for the GPU at hand, {gpu.compute_capability}, not for {other[0]}",
                hint="run it on a machine with that GPU, or use --target tensorrt-rtx",
            )
        return (gpu.compute_capability,)
    known = library.compute_capabilities
    if unknown := sorted(set(asked) - set(known)):
        raise InputError(
            f"{library.name} cannot build for compute capability {unknown[0]}",
            hint=f"it can for {', '.join(known)}; for other GPUs use --target tensorrt there",
        )
    chosen = asked or tuple(one for one in known if int(one) >= AMPERE)
    old = [one for one in chosen if int(one) < AMPERE]
    if old and settings.precision != "fp16":
        raise InputError(
            f"{library.name} multiplies in fp16 alone on compute capability {old[0]}", hint="--precision fp16"
        )
    return tuple(sorted(set(chosen), key=int))


def _gpu_of(library: Library) -> Gpu | None:
    """The GPU at hand.

    Raises: ProviderError: the library needs one, and there is none.
    """
    try:
        return visible_gpu(library.name)
    except (ProviderError, MissingExtraError):
        if library.needs_gpu:
            raise
        return None


def _convert(
    bundle: Bundle,
    parts: Sequence[str],
    settings: EngineSettings,
    checks: CheckSet,
    workspace: Path,
    step: Progress,
) -> tuple[dict[str, Path], dict[str, list[TaskCheck]], dict[str, str]]:
    """Each part's ONNX in the wanted precision, the checks of those that are kept, and why others are not."""
    if settings.precision == "fp32":
        return {part: bundle.path(bundle.parts[part].files["fp32"]) for part in parts}, {}, {}
    precision: LowerPrecision = settings.precision
    step(f"comparing with fp32 on {checks.name}", 0, 0)
    reference = Fp32Reference(bundle, checks, parts)
    inputs = {part: reference.inputs(part) for part in parts}
    sources: dict[str, Path] = {}
    found: dict[str, list[TaskCheck]] = {}
    refused: dict[str, str] = {}
    for number, part in enumerate(parts):
        step(f"{part}: converting to {precision}", number, len(parts))
        exact = bundle.path(bundle.parts[part].files["fp32"])
        kept = settings.kept.get(part, ())
        # What is judged is rounded as a GPU rounds: onnxruntime on a CPU leaves out roundings of fp16, and has no bf16.
        with tempfile.TemporaryDirectory(dir=workspace) as beside:
            graph = SwitchedGraph(exact, precision, inputs[part], Path(beside))
            judged = reference.check({part: graph.all_but(kept)}, precision)
        problems = problems_of(judged)
        if problems and not settings.accept_quality_loss:
            refused[part] = problems[0]
            continue
        found[part] = judged
        lowered = workspace / f"{part}.{precision}.onnx"
        lower_graph(exact, lowered, precision, inputs[part], kept)
        sources[part] = lowered
    return sources, found, refused


def _describe(
    bundle: Bundle, part: str, source: Path, library: Library, capabilities: tuple[str, ...], precision: EnginePrecision
) -> EngineFile:
    shapes = shape_ranges(bundle, part)
    sha256 = file_sha256(source)
    key = EngineKey(library.name, library.version, capabilities, system_name(), precision, shapes, sha256)
    inside = f"{ENGINES}/{part}.{precision}.{sha256[:16]}.onnx"
    return EngineFile(
        part,
        f"{ENGINES}/{part}.{precision}.{key.digest}.engine",
        bundle.parts[part].files["fp32"] if precision == "fp32" else inside,
        estimate_memory(source, shapes).total,
        key,
    )


def _build(
    library: Library,
    engines: Sequence[EngineFile],
    sources: Mapping[str, Path],
    workspace: Workspace,
    jobs: int,
    step: Progress,
) -> int:
    """Build what the workspace has not, each in a process of its own; returns how many that were."""
    missing = [engine for engine in engines if workspace.store.find(engine.key) is None]
    # TensorRT has state of its own in a process, and a compiler that may take one down.
    with ProcessPoolExecutor(max_workers=jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = [
            pool.submit(build_into, workspace.store, library.name, sources[engine.part], engine.key)
            for engine in missing
        ]
        step(f"building {len(missing)} engines", 0, len(missing))
        for done, future in enumerate(as_completed(running), start=1):
            try:
                future.result()
            except BrokenProcessPool as error:
                raise ProviderError(
                    f"{library.name} was killed while it built: too little memory?", hint="fewer --jobs"
                ) from error
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            step(f"building {len(missing)} engines", done, len(missing))
    return len(missing)


def _put_in_place(
    bundle: Bundle,
    engines: Sequence[EngineFile],
    sources: Mapping[str, Path],
    checks: Mapping[str, Sequence[TaskCheck]],
    workspace: Workspace,
) -> None:
    """Move files in, then replace the manifest that names them, then drop those that it no longer names."""
    replaced = {(engine.part, engine.key.library) for engine in engines}
    kept = [one for one in bundle.engines if (one.part, one.key.library) not in replaced]
    named = sorted((*kept, *engines), key=lambda one: (one.part, one.key.library))
    (bundle.folder / ENGINES).mkdir(exist_ok=True)
    files: dict[str, Any] = dict(bundle.manifest["files"])
    for engine in engines:
        if engine.file not in files:
            shutil.copyfile(workspace.store.path(engine.key), bundle.folder / engine.file)
            files[engine.file] = file_facts(bundle.folder / engine.file)
        if engine.source not in files:
            shutil.copyfile(sources[engine.part], bundle.folder / engine.source)
            files[engine.source] = file_facts(bundle.folder / engine.source)
    wanted = {name for one in named for name in (one.file, one.source)}
    dropped = [name for name in files if name.startswith(f"{ENGINES}/") and name not in wanted]
    # By the ONNX that was judged, so that they go with it.
    judged = {one.source: [asdict(check) for check in checks[one.part]] for one in engines if one.part in checks}
    known = {**bundle.manifest["checks"].get(ENGINES, {}), **judged}
    replace_manifest(
        bundle,
        {
            "files": dict(sorted((name, facts) for name, facts in files.items() if name not in dropped)),
            "checks": {
                **bundle.manifest["checks"],
                ENGINES: {name: known[name] for name in sorted(wanted & known.keys())},
            },
            ENGINES: [asdict(engine) for engine in named],
        },
    )
    for name in dropped:
        (bundle.folder / name).unlink(missing_ok=True)


@dataclass(slots=True)
class Workspace:
    """A folder beside a bundle that outlives an interrupted run. done: whether it may go."""

    folder: Path
    done: bool = False

    @property
    def store(self) -> EngineStore:
        """Engines that are built and not yet in the bundle."""
        return EngineStore(self.folder / "built")


@contextmanager
def _workspace(bundle: Path) -> Iterator[Workspace]:
    folder = bundle.absolute().parent / f".{bundle.absolute().name}.engines"
    folder.mkdir(exist_ok=True)
    workspace = Workspace(folder)
    try:
        yield workspace
    finally:
        for left in folder.glob("*.onnx"):
            left.unlink()
        if workspace.done or not any(folder.rglob("*.engine")):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Say of the system's refusals (a full disk, a folder of somebody else) what they prevented.

    Raises: BundleError.
    """
    try:
        yield
    except OSError as error:
        raise BundleError(f"engines cannot be written to {folder}: {error.strerror or error}") from error
