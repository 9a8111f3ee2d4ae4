"""Diagnosing a part of a bundle on conversations, or an ONNX file on saved inputs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx

from mechm_export.diagnose.layer_switches import LayerSwitches, LoweredRunner
from mechm_export.diagnose.proposal import Proposal, read_proposal
from mechm_export.diagnose.search import Diagnosis, Gate, compare_outputs, find_failing_layers
from mechm_export.gate.check_set import CheckSet
from mechm_export.gate.fp32_reference import Fp32Reference
from mechm_export.gate.run import problems_of
from mechm_export.precision.lower import LowerPrecision
from mechm_runtime.bundle.open import file_sha256, open_bundle
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.errors import BundleError, InputError
from mechm_runtime.system.arrays import Array, Arrays
from mechm_runtime.system.progress import Progress

MAX_INPUT_BYTES = 1 << 30
"""Largest size of a file of inputs."""


@dataclass(frozen=True, slots=True)
class DiagnosisReport:
    """A diagnosis and its subject. subject: name of the part or the file. onnx_sha256: sha256 of the ONNX file."""

    subject: str
    precision: LowerPrecision
    onnx_sha256: str
    diagnosis: Diagnosis

    def to_json(self) -> str:
        """Everything as JSON text; values that are not finite are null."""
        values = asdict(self)
        for layer in (values["diagnosis"]["together"], *(one["difference"] for one in values["diagnosis"]["layers"])):
            if not np.isfinite(layer["relative_error"]):
                layer["relative_error"] = None
        return json.dumps(values, indent=1) + "\n"

    def write_kept(self, path: Path) -> None:
        """Write the proposal for `mechm export engines --keep` and `bundle --keep`."""
        Proposal(self.subject, self.precision, self.onnx_sha256, self.diagnosis.kept).write(path)


def diagnose_part(
    folder: Path, part: str, precision: LowerPrecision, checks: CheckSet, on_progress: Progress | None = None
) -> DiagnosisReport:
    """Diagnose a part of a bundle; the gate is the task's answers (`gate.comparison.TaskCheck`).

    Raises: BundleError: damaged. InputError: no such part. VerificationError: it is not run for the conversations.
    """
    bundle = open_bundle(folder)
    reference = Fp32Reference(bundle, checks, [part])
    feeds = reference.inputs(part)

    def gate(runner: LoweredRunner) -> str:
        return "; ".join(problems_of(reference.check({part: runner}, precision)))

    source = bundle.path(bundle.parts[part].files["fp32"])
    return _diagnose(part, source, precision, feeds, gate, on_progress)


def diagnose_file(
    source: Path,
    precision: LowerPrecision,
    inputs: Sequence[Path],
    min_cosine: float,
    on_progress: Progress | None = None,
) -> DiagnosisReport:
    """Diagnose an ONNX file; the gate is the lowest cosine of its outputs with those in fp32.

    inputs: npz files, each with one array per input of the graph, by name.
    Raises: InputError: a file is not a graph, lacks the arrays, or is too large.
    """
    names = _input_names(source)
    feeds = [read_inputs(path, names) for path in inputs]
    exact = [OnnxRuntimeEngine(source, EngineConfig()).run(feed) for feed in feeds]

    def gate(runner: LoweredRunner) -> str:
        cosine = compare_outputs(exact, [runner.run(feed) for feed in feeds]).cosine
        return "" if cosine >= min_cosine else f"cosine {cosine:.4f}, less than {min_cosine}"

    return _diagnose(source.name, source, precision, feeds, gate, on_progress)


def read_inputs(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """Read arrays from an npz file, and nothing else in it.

    Raises: InputError: it cannot be read, is too large, or lacks an input.
    """
    try:
        if path.stat().st_size > MAX_INPUT_BYTES:
            raise InputError(f"{path} is larger than {MAX_INPUT_BYTES >> 20} MiB")
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in names if name in stored.files}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is no npz file of arrays: {error}", hint="numpy.savez(FILE, NAME=ARRAY)") from error
    if absent := sorted(set(names) - set(arrays)):
        raise InputError(f"{path} has no {absent[0]}", hint=f"the graph takes {', '.join(names)}")
    return arrays


def read_fp32_layers(folder: Path, precision: str, paths: Sequence[Path]) -> dict[str, tuple[str, ...]]:
    """Read proposals, and return the layers to keep in fp32 by part.

    Raises: BundleError: one is for a part that the bundle lacks. InputError: one is for another graph or precision.
    """
    bundle = open_bundle(folder, check_hashes=False)
    kept = {}
    for path in paths:
        proposal = read_proposal(path)
        part = proposal.part
        if part not in bundle.parts:
            raise BundleError(f"{path} is for a part {part}, which the bundle does not have")
        exact = bundle.manifest["files"][bundle.parts[part].files["fp32"]]["sha256"]
        if proposal.onnx_sha256 != exact or proposal.precision != precision:
            raise InputError(
                f"{path} was proposed for another graph or precision",
                hint=f"mechm export diagnose --bundle {folder} --part {part} --precision {precision} --write {path}",
            )
        kept[part] = proposal.kept
    return kept


def _diagnose(
    subject: str,
    source: Path,
    precision: LowerPrecision,
    feeds: Sequence[Arrays],
    gate: Gate,
    on_progress: Progress | None,
) -> DiagnosisReport:
    with tempfile.TemporaryDirectory(prefix="mechm.") as workspace:
        graph = LayerSwitches(source, precision, feeds, Path(workspace))
        return DiagnosisReport(
            subject, precision, file_sha256(source), find_failing_layers(graph, feeds, gate, on_progress)
        )


def _input_names(source: Path) -> list[str]:
    try:
        graph = onnx.load(source).graph
    except Exception as error:  # protobuf's own errors share no public base
        raise InputError(f"{source} is no ONNX file: {str(error)[:200]}") from error
    constants = {constant.name for constant in graph.initializer}
    return [value.name for value in graph.input if value.name not in constants]
