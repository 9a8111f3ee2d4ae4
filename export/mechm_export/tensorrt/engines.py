"""Adding TensorRT engines to a bundle: each part is converted, checked and built, and all are put in place at once.

Built engines are kept in a folder beside the bundle until the bundle has them, so that an interrupted run continues
where it stopped. A part whose answers change too much is left out. The ONNX from which an engine was built goes into
the bundle too: a machine with another GPU or version builds its engine from that
(`mechm_runtime.engines.tensorrt.engine`).
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
from mechm_export.diagnose.layer_switches import LayerSwitches
from mechm_export.gate.check_set import CheckSet
from mechm_export.gate.comparison import TaskCheck
from mechm_export.gate.fp32_reference import Fp32Reference
from mechm_export.gate.run import problems_of
from mechm_export.precision.lower import LowerPrecision, lower_graph
from mechm_export.tensorrt.memory import estimate_memory
from mechm_export.tensorrt.shapes import shape_ranges
from mechm_runtime.bundle.engine_file import EngineFile, EngineKey, EnginePrecision
from mechm_runtime.bundle.manifest import ENGINES, Bundle
from mechm_runtime.bundle.open import file_sha256, open_bundle
from mechm_runtime.bundle.staging import explain_write_errors
from mechm_runtime.engines.tensorrt.build import build_into
from mechm_runtime.engines.tensorrt.engine import check_memory
from mechm_runtime.engines.tensorrt.engine_store import EngineStore
from mechm_runtime.engines.tensorrt.library import Gpu, Library, LibraryName, load_library, system_name, visible_gpu
from mechm_runtime.errors import BundleError, InputError, MissingExtraError, ProviderError, VerificationError
from mechm_runtime.system.progress import Progress, no_progress

AMPERE = 80
"""Lowest compute capability for which TensorRT-RTX has all precisions. For Turing (75) it refuses products in fp32, and
has no bfloat16 (its support matrix, and tried with 1.7.1)."""

DIAGNOSE_HINT = "mechm export diagnose finds the layers to keep in fp32, for --keep; or --accept-quality-loss"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The engines to build.

    library: TensorRT or TensorRT-RTX. parts: names, or none for all. compute_capabilities: of the GPUs, as in `86`;
    none for those the library can build for (from Ampere on), or that of this machine's GPU. fp32_nodes: part -> nodes
    that stay in fp32. accept_quality_loss: also build parts that change too many answers. jobs: engines built at once.
    """

    library: LibraryName
    precision: EnginePrecision = "fp16"
    parts: tuple[str, ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    fp32_nodes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    accept_quality_loss: bool = False
    jobs: int = 1


@dataclass(frozen=True, slots=True)
class EnginesReport:
    """The engines that the bundle has now.

    built: number of engines that were built; the bundle, or an interrupted run, had the others already.
    checks: part -> its answers compared with fp32. refused: part -> the reason why it was left out.
    """

    engines: tuple[EngineFile, ...]
    built: int
    checks: Mapping[str, Sequence[TaskCheck]]
    refused: Mapping[str, str]


def add_engines(
    folder: Path, settings: EngineSettings, checks: CheckSet, on_progress: Progress | None = None
) -> EnginesReport:
    """Build engines and put them into a bundle, in place of older ones of the same part and library.

    Raises: MissingExtraError: the library is not installed. ProviderError: it refuses a graph, or this machine's GPU is
        too small. InputError: an unknown part or compute capability. BundleError: damaged, or cannot be written.
        VerificationError: a part is not run for the conversations, or every part was left out.
    """
    step = on_progress or no_progress
    library = load_library(settings.library)
    gpu = _gpu_of(library)
    capabilities = choose_capabilities(library, gpu, settings)
    bundle = open_bundle(folder)
    parts = settings.parts or tuple(bundle.parts)
    if unknown := sorted({*parts, *settings.fp32_nodes} - set(bundle.parts)):
        raise InputError(f"the bundle has no part {unknown[0]}", hint=f"it has {', '.join(bundle.parts)}")
    for part in parts:
        if "fp32" not in bundle.parts[part].files:
            raise BundleError(
                f"the bundle has no fp32 file of its {part} part, from which engines are built",
                hint="give the bundle that it was split from, or split it with --precision fp32",
            )
    with explain_write_errors(folder, "engines", hint=""), _workspace(folder) as workspace:
        sources, found, refused = _convert(bundle, parts, settings, checks, workspace.folder, step)
        if not sources:
            raise VerificationError(f"no part is good enough: {'; '.join(refused.values())}", hint=DIAGNOSE_HINT)
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


def choose_capabilities(library: Library, gpu: Gpu | None, settings: EngineSettings) -> tuple[str, ...]:
    """The compute capabilities to build for, sorted.

    gpu: this machine's, where the library needs one.
    Raises: InputError: the library cannot build for one of them, or not in this precision.
    """
    asked = settings.compute_capabilities
    if gpu is not None and library.needs_gpu:
        if other := sorted(set(asked) - {gpu.compute_capability}):
            raise InputError(
                f"{library.name} builds for the GPU at hand, {gpu.compute_capability}, not for {other[0]}",
                hint="run it on a machine with that GPU, or use --engine tensorrt-rtx",
            )
        return (gpu.compute_capability,)
    known = library.compute_capabilities
    if unknown := sorted(set(asked) - set(known)):
        raise InputError(
            f"{library.name} cannot build for compute capability {unknown[0]}",
            hint=f"it can for {', '.join(known)}; for other GPUs use --engine tensorrt there",
        )
    chosen = asked or tuple(one for one in known if int(one) >= AMPERE)
    old = [one for one in chosen if int(one) < AMPERE]
    if old and settings.precision != "fp16":
        raise InputError(
            f"{library.name} multiplies in fp16 alone on compute capability {old[0]}", hint="--precision fp16"
        )
    return tuple(sorted(set(chosen), key=int))


def _gpu_of(library: Library) -> Gpu | None:
    """This machine's GPU, None if there is none and the library needs none.

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
    """Convert parts to the wanted precision.

    Returns: part -> its ONNX file, part -> its checks, and part -> the reason why it was left out.
    """
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
        fp32_nodes = settings.fp32_nodes.get(part, ())
        # Checked as a GPU rounds: onnxruntime on a CPU omits some roundings of fp16, and has no bf16.
        with tempfile.TemporaryDirectory(dir=workspace) as beside:
            graph = LayerSwitches(exact, precision, inputs[part], Path(beside))
            tasks = reference.check({part: graph.lower_all_except(fp32_nodes)}, precision)
        problems = problems_of(tasks)
        if problems and not settings.accept_quality_loss:
            refused[part] = problems[0]
            continue
        found[part] = tasks
        lowered = workspace / f"{part}.{precision}.onnx"
        lower_graph(exact, lowered, precision, inputs[part], fp32_nodes)
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
    """Build the engines that the workspace lacks, each in a process of its own; returns their number."""
    missing = [engine for engine in engines if workspace.store.find(engine.key) is None]
    # TensorRT keeps global state in a process, and its compiler can crash one.
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
    """Copy files in, then replace the manifest, then delete the files that it no longer names."""
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
    # Named by the ONNX that was checked, so that they are dropped with it.
    tasks = {one.source: [asdict(check) for check in checks[one.part]] for one in engines if one.part in checks}
    known = {**bundle.manifest["checks"].get(ENGINES, {}), **tasks}
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
    """A folder beside a bundle that survives an interrupted run. done: whether it may be deleted."""

    folder: Path
    done: bool = False

    @property
    def store(self) -> EngineStore:
        """Engines that are built and not in the bundle yet."""
        return EngineStore(self.folder / "built")


@contextmanager
def _workspace(bundle: Path) -> Iterator[Workspace]:
    folder = bundle.absolute().parent / f".{bundle.absolute().name}.engines"
    folder.mkdir(exist_ok=True)
    workspace = Workspace(folder)
    try:
        yield workspace
    finally:
        for graph in folder.glob("*.onnx"):
            graph.unlink()
        if workspace.done or not any(folder.rglob("*.engine")):
            shutil.rmtree(folder, ignore_errors=True)
