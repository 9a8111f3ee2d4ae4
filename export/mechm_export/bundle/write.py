"""Writing a bundle: every part is exported and checked, and files and manifest are put where the runtime finds them.

Everything is made in a folder beside the target, which is renamed when it is complete: an interrupted export leaves an
old bundle as it was. A precision that fails the gate is not written, unless its loss is accepted.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import onnx

from mechm_export.bundle.calibration import recorded_inputs, recordings_or_shipped, smooth_llama, text_inputs
from mechm_export.bundle.half_parts import write_half_parts
from mechm_export.bundle.manifest import LLAMA_TOKENIZER, graph_path, write_manifest
from mechm_export.bundle.report import BundleReport
from mechm_export.deployment.split import Deployment, split_bundle
from mechm_export.diagnose.proposal import Proposal
from mechm_export.gate.check_set import CheckSet, shipped_check_set
from mechm_export.gate.comparison import TaskCheck, ValueCheck, check_values
from mechm_export.gate.run import Graph, TorchReference, run_gate, torch_reference
from mechm_export.graphs.part import STATIC_INT8, WEIGHT_ONLY_INT8, ExportPart, Feeds
from mechm_export.graphs.trace import export_graph
from mechm_export.parts import ModelParts, build_parts
from mechm_export.precision.dynamic_int8 import matching_layers, quantize_int8, quantize_weights
from mechm_export.precision.static_int8 import quantize_static_int8
from mechm_runtime.bundle.manifest import LLAMA, TOKENIZER_FILE
from mechm_runtime.bundle.open import file_sha256, open_bundle
from mechm_runtime.bundle.precision import PORTABLE_INT8
from mechm_runtime.bundle.staging import check_target, staging_folder
from mechm_runtime.engines.spec import GPU_ENGINE
from mechm_runtime.errors import InputError, MissingExtraError
from mechm_runtime.system.atomic_write import put_in_place

Target = Literal["onnxruntime", "onnxruntime-gpu", "openvino"]
"""An engine that a bundle's graphs are for; engines of TensorRT are added later (`tensorrt.engines`)."""

DEFAULT_TARGETS: tuple[Target, ...] = ("onnxruntime",)
TARGETS_ON_RECORDINGS: frozenset[Target] = frozenset(("onnxruntime-gpu", "openvino"))
"""Targets whose precisions of the audio and picture encoders are checked on recordings."""

Step = Callable[[str], None]
"""Called with a description of each step, as it starts."""


def export_bundle(
    preset: str,
    out: Path,
    *,
    trained: Path | None,
    adapter: Path | None = None,
    llm_base: Path | None = None,
    check_set: CheckSet | None = None,
    targets: Collection[Target] = DEFAULT_TARGETS,
    keep: Sequence[Proposal] = (),
    accept_quality_loss: bool = False,
    split: bool = False,
    on_step: Step | None = None,
) -> BundleReport:
    """Export a preset to a bundle folder.

    trained: folder of trained weights; None leaves fusion and heads random.
    adapter: folder of the Llama's trained adapter; None makes a bundle without a Llama.
    llm_base: the Llama that the adapter is for; None for the preset's.
    check_set: conversations on which precisions are compared; None for the shipped ones.
    targets: engines that the bundle is for. Each of them reads fp32; int8 is for onnxruntime, fp16 and bf16 are for
        onnxruntime-gpu, w8 is for openvino. For the latter two, audio and picture encoders are compared, and for
        openvino calibrated, on the check set's recordings, or on the shipped one.
    keep: layers that stay in fp32 in the int8 of their parts.
    accept_quality_loss: also write precisions that change too many answers, and state the changes in the manifest.
    split: write only what the one target runs by default (`deployment.split`).
    Raises: InputError: `keep` is for another graph, or for a part without such layers; `split` with several targets.
        MissingExtraError: a target is not installed. BundleError: `out` exists and is not a bundle, or cannot be
        written. WeightsError: weights are missing. VerificationError: fp32 does not match torch.
    """
    out = out.absolute()  # `.` has no name of its own
    check_target(out)
    require_targets(targets)
    if split and len(targets) != 1:
        raise InputError("a split bundle is for one target", hint="name one, or export the whole bundle")
    step = on_step or (lambda _what: None)
    step("loading weights")
    model = build_parts(preset, trained, adapter, llm_base)
    proposals = _proposals_by_part(model, keep)
    with staging_folder(out) as staging:
        export = _Export(model, staging, step, accept_quality_loss)
        export.run(targets, check_set or shipped_check_set(), proposals)
        open_bundle(staging)
        if split:
            (engine,) = targets
            step(f"taking out what {engine} runs")
            split_bundle(staging, out, Deployment(engine=engine))
        else:
            put_in_place(staging, out)
    bundle = open_bundle(out, check_hashes=False)
    return BundleReport(bundle, tuple(export.values), tuple(export.tasks), export.refused)


def require_targets(targets: Collection[Target]) -> None:
    """Raises: MissingExtraError: a package that makes or checks the precisions of a target is not installed."""
    needed = [("openvino", "openvino")] if "openvino" in targets else []
    if TARGETS_ON_RECORDINGS & set(targets):
        needed += [("av", "media"), ("PIL", "media")]
    for package, extra in needed:
        if find_spec(package) is None:
            raise MissingExtraError(package, extra=extra)


def _proposals_by_part(model: ModelParts, keep: Sequence[Proposal]) -> dict[str, Proposal]:
    """Raises: InputError: a proposal is for a part that is not traced, and so has no layers to name."""
    proposals = {proposal.part: proposal for proposal in keep}
    if unknown := sorted(proposals.keys() - {part.name for part in model if part.write is None}):
        raise InputError(f"no layers of the part {unknown[0]} can be kept in fp32")
    return proposals


@dataclass(slots=True)
class _Export:
    """An export in progress.

    precisions: part -> the precisions that are written. values, tasks: checks of what is written. refused, accepted:
    graphs that fail the gate, left out or written all the same, with the reason.
    """

    model: ModelParts
    staging: Path
    step: Step
    accept_quality_loss: bool
    precisions: dict[str, list[str]] = field(default_factory=dict)
    values: list[ValueCheck] = field(default_factory=list)
    tasks: list[TaskCheck] = field(default_factory=list)
    refused: dict[Graph, str] = field(default_factory=dict)
    accepted: dict[Graph, str] = field(default_factory=dict)

    def run(self, targets: Collection[Target], checks: CheckSet, proposals: Mapping[str, Proposal]) -> None:
        """Write and check everything that the bundle holds.

        proposals: part -> layers that stay in fp32 in its int8.
        Raises: VerificationError: fp32 does not match torch.
        """
        self.write_parts(targets, checks, proposals)
        self.copy_tokenizers()
        self.write_manifest()
        if TARGETS_ON_RECORDINGS & set(targets):
            checks = replace(checks, recorded=recordings_or_shipped(checks))
        if "openvino" in targets:
            self.write_static_int8(checks)
            self.write_manifest()
        self.step(f"comparing answers on {checks.name}")
        reference = torch_reference(open_bundle(self.staging, check_hashes=False), self.model, checks)
        self.apply_gate(reference)
        if GPU_ENGINE in targets:
            self.write_half(reference)
        self.write_manifest()

    def write_parts(self, targets: Collection[Target], checks: CheckSet, proposals: Mapping[str, Proposal]) -> None:
        """Write every part in fp32, int8 and weight-only int8, as far as the targets run them, and compare values."""
        if self.model.llama is not None:
            self.step(f"{LLAMA}: smoothing channels")
            smooth_llama(self.model.llama, checks)
        calibration = {"text": text_inputs(self.model, checks)}
        for part in self.model:
            self.precisions[part.name] = _precisions(part, targets)
            if part.write is not None:
                self._write_untraced(part)
            else:
                self._write_traced(part, calibration.get(part.name, []), proposals.get(part.name))

    def copy_tokenizers(self) -> None:
        """Copy the text encoder's tokenizer, and the Llama's where there is one."""
        tokenizers = [(self.model.tokenizer, TOKENIZER_FILE)]
        if self.model.llama is not None:
            tokenizers.append((self.model.llama.tokenizer, LLAMA_TOKENIZER))
        for source, name in tokenizers:
            target = self.staging.joinpath(*name.split("/"))
            target.parent.mkdir()
            shutil.copyfile(source, target)

    def write_manifest(self) -> None:
        """Write the manifest of everything that is there so far."""
        write_manifest(self.staging, self.model, self.precisions, self.values, self.tasks, self.accepted)

    def write_static_int8(self, checks: CheckSet) -> None:
        """Write the static int8 of audio and picture encoders, stored as w8, with scales from recordings."""
        parts = [part for part in self.model if part.int8.portable == STATIC_INT8]
        names = [part.name for part in parts]
        self.step(f"{', '.join(names)}: collecting inputs for {PORTABLE_INT8}")
        inputs = recorded_inputs(open_bundle(self.staging, check_hashes=False), checks.recorded, names)
        for part in parts:
            if not inputs[part.name]:
                self.refused[part.name, PORTABLE_INT8] = (
                    "nothing in the recordings reaches it, so that its scales are unknown"
                )
                continue
            self.step(f"{part.name}: exporting {PORTABLE_INT8}")
            path = self._path(part, PORTABLE_INT8)
            quantize_static_int8(self._path(part, "fp32"), path, inputs[part.name])
            self._check_values(part, PORTABLE_INT8)
            self.precisions[part.name].append(PORTABLE_INT8)

    def apply_gate(self, reference: TorchReference) -> None:
        """Compare answers with torch's, and delete the graphs that fail unless the loss is accepted.

        Raises: VerificationError: fp32 changes answers.
        """
        bundle = open_bundle(self.staging, check_hashes=False)
        self.tasks, failed = run_gate(bundle, reference, accept_quality_loss=self.accept_quality_loss)
        if self.accept_quality_loss:
            self.accepted |= failed
            return
        self.refused |= failed
        for name, precision in failed:
            self.precisions[name].remove(precision)
            graph_path(self.staging, name, precision).unlink()
        self.values = [check for check in self.values if check.precision in self.precisions[check.part]]

    def write_half(self, reference: TorchReference) -> None:
        """Write one 16-bit graph per part, where one is good enough."""
        half = write_half_parts(
            self.model,
            self.staging,
            reference,
            self.precisions,
            self.step,
            accept_quality_loss=self.accept_quality_loss,
        )
        for name, precision in half.chosen.items():
            self.precisions[name].append(precision)
        self.values += half.values.values()
        self.tasks += half.tasks
        self.refused |= half.refused
        self.accepted |= half.accepted

    def _write_untraced(self, part: ExportPart) -> None:
        """Write a part that brings its own writer."""
        for precision in self.precisions[part.name]:
            self.step(f"{part.name}: writing {precision}")
            path = self._path(part, precision)
            path.parent.mkdir(exist_ok=True)
            if part.write is not None:
                part.write(part, path, precision)
            self._check_values(part, precision)

    def _write_traced(self, part: ExportPart, feeds: Sequence[Feeds], proposal: Proposal | None) -> None:
        """Trace a part, and quantize the graph.

        feeds: real inputs, for recipes that smooth. proposal: layers that stay in fp32 in int8.
        """
        precisions = self.precisions[part.name]
        portable = self._path(part, "fp32")
        portable.parent.mkdir(exist_ok=True)
        self.step(f"{part.name}: exporting fp32")
        export_graph(part, portable, "portable")
        self._check_values(part, "fp32")
        if PORTABLE_INT8 in precisions:
            self.step(f"{part.name}: exporting {PORTABLE_INT8}")
            quantize_weights(portable, self._path(part, PORTABLE_INT8), part.int8, feeds)
            self._check_values(part, PORTABLE_INT8)
        if "int8" not in precisions:
            return
        self.step(f"{part.name}: exporting int8")
        base = portable
        if part.n_heads:  # without attention to fuse, the portable graph serves: tracing takes most of the time
            base = self.staging / f"{part.name}.fused.onnx"
            export_graph(part, base, "fused")
        fp32_nodes = [] if proposal is None else _proposed_layers(proposal, portable, base)
        quantize_int8(base, self._path(part, "int8"), part.int8, feeds, fp32_nodes)
        if base != portable:
            base.unlink()
        self._check_values(part, "int8")

    def _check_values(self, part: ExportPart, precision: str) -> None:
        self.values.append(check_values(part, self._path(part, precision), precision))

    def _path(self, part: ExportPart, precision: str) -> Path:
        return graph_path(self.staging, part.name, precision)


def _precisions(part: ExportPart, targets: Collection[Target]) -> list[str]:
    """The precisions that a part is written in without real inputs of audio and pictures."""
    int8 = ["int8"] if "onnxruntime" in targets else []
    weight_only = [PORTABLE_INT8] if "openvino" in targets and part.int8.portable == WEIGHT_ONLY_INT8 else []
    return ["fp32", *int8, *weight_only]


def _proposed_layers(proposal: Proposal, portable: Path, base: Path) -> list[str]:
    """Names of a proposal's layers in the graph from which int8 is made.

    portable: the graph that the proposal names. base: another graph of the same part.
    Raises: InputError: the proposal was made for another graph.
    """
    if proposal.onnx_sha256 != file_sha256(portable):
        raise InputError(
            f"the layers to keep of the part {proposal.part} were proposed for other weights",
            hint=f"on a bundle of these: mechm export diagnose --part {proposal.part} --precision int8 --write FILE",
        )
    return matching_layers(onnx.load(portable), proposal.kept, onnx.load(base))
