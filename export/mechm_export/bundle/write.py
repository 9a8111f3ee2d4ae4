"""Write a bundle: export every part, check it, and put files and manifest where the runtime finds them.

Everything is made in a folder beside the target and renamed when it is whole: an interrupted export leaves the old
bundle as it was. A precision that fails the gate is not written.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import onnx

from mechm_export.bundle.calibration import even_out_llama, recorded_inputs, recordings_of, text_inputs
from mechm_export.bundle.half_parts import write_half_parts
from mechm_export.bundle.manifest import (
    LLAMA_TOKENIZER,
    graph_name,
    llama_files,
    weights_hashes,
    write_manifest,
)
from mechm_export.diagnose.proposal import Proposal
from mechm_export.gate.comparison import TaskCheck, ValueCheck, check_values
from mechm_export.gate.judge import CheckSet, Graph, ask_torch, compare, judge, problems_of, shipped_check_set
from mechm_export.graphs.part import ExportPart, Feeds
from mechm_export.graphs.trace import export_graph
from mechm_export.parts import ModelParts, build_parts
from mechm_export.precision.dynamic_int8 import matching_layers, quantize_int8, quantize_weights
from mechm_export.precision.static_int8 import quantize_static_int8
from mechm_export.staging import check_target, put_in_place, staged, written
from mechm_runtime.bundle.manifest import ACCEPTED, LLAMA, TOKENIZER_FILE, Bundle
from mechm_runtime.bundle.open import file_sha256, open_bundle
from mechm_runtime.bundle.precision import HALF, W8
from mechm_runtime.engines.spec import ENGINES, GPU_ENGINE
from mechm_runtime.errors import InputError, MissingExtraError, VerificationError

Target = Literal["onnxruntime", "onnxruntime-gpu", "openvino"]
"""What a bundle's graphs are for; engines of TensorRT are added to it (`tensorrt.engines`)."""

DEFAULT_TARGETS: tuple[Target, ...] = ("onnxruntime",)

Step = Callable[[str], None]
"""Called with what is being done, as it starts."""


@dataclass(frozen=True, slots=True)
class BundleReport:
    """What was written and how it compares."""

    bundle: Bundle
    values: tuple[ValueCheck, ...]
    tasks: tuple[TaskCheck, ...]
    refused: Mapping[Graph, str] = field(default_factory=dict)

    @property
    def problems(self) -> list[str]:
        """Where answers differ from torch's by more than the gate allows, and nobody has accepted that."""
        lossy = {precision for _, precision in self.accepted}
        if any((part.name, part.default) in self.accepted for part in self.bundle.parts.values()):
            lossy.add("default")
        return problems_of(task for task in self.tasks if task.precision not in lossy)

    @property
    def accepted(self) -> dict[Graph, str]:
        """What is wrong with graphs that were written all the same."""
        found = self.bundle.manifest["checks"].get(ACCEPTED, ())
        return {(one["part"], one["precision"]): one["reason"] for one in found}


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
    on_step: Step | None = None,
) -> BundleReport:
    """Export a preset to a bundle folder.

    trained: folder of trained weights; None leaves fusion and heads random.
    adapter: folder of the Llama's trained adapter; None makes a bundle without a Llama.
    llm_base: the Llama it is for; None for the preset's.
    check_set: what precisions are judged on; None for the shipped conversations.
    targets: engines that the bundle is for; every one of them reads fp32, int8 is onnxruntime's, fp16 and bf16
        are for onnxruntime-gpu, w8 is for openvino: for these two what is heard and seen is judged, and for openvino
        calibrated, on the check set's recordings, or on the shipped one.
    keep: layers that stay in fp32 in the int8 of their parts.
    accept_quality_loss: write precisions that change too many answers too, and what they change into the manifest.
    Raises: InputError: `keep` speaks of another graph, or of a part that has no such layers. MissingExtraError: a
        target is not installed. BundleError: `out` exists and is not a bundle, or cannot be
        written. WeightsError: weights are missing. VerificationError: fp32 does not match torch.
    """
    out = out.absolute()  # `.` has no name of its own
    check_target(out)
    step = on_step or (lambda _what: None)
    checks = check_set or shipped_check_set()
    require_targets(targets)
    step("loading weights")
    model = build_parts(preset, trained, adapter, llm_base)
    kept = {proposal.part: proposal for proposal in keep}
    if unknown := sorted(kept.keys() - {part.name for part in model if part.write is None}):
        raise InputError(f"no layers of the part {unknown[0]} can be kept in fp32")
    with written(out), staged(out) as staging:
        if model.llama is not None:
            step(f"{LLAMA}: evening out channels")
            even_out_llama(model.llama, checks)
        calibration = {"text": text_inputs(model, checks)}
        precisions = {part.name: _precisions(part, targets) for part in model}
        values = [
            check
            for part in model
            for check in _write_part(
                part, staging, calibration.get(part.name, []), precisions[part.name], kept.get(part.name), step
            )
        ]
        carried = [(model.tokenizer, TOKENIZER_FILE)]
        if model.llama is not None:
            carried.append((model.llama.tokenizer, LLAMA_TOKENIZER))
        for source, name in carried:
            target = staging.joinpath(*name.split("/"))
            target.parent.mkdir()
            shutil.copyfile(source, target)
        write_manifest(staging, model, precisions, values, [])
        refused: dict[Graph, str] = {}
        if {"openvino", GPU_ENGINE} & set(targets):
            checks = replace(checks, recorded=recordings_of(checks))
        if "openvino" in targets:
            for part, found in _write_static(model, staging, checks, step):
                if isinstance(found, str):
                    refused[part, W8] = found
                else:
                    precisions[part].append(W8)
                    values.append(found)
            write_manifest(staging, model, precisions, values, [])
        step(f"comparing answers on {checks.name}")
        reference = ask_torch(open_bundle(staging, check_hashes=False), model, checks)
        opened = open_bundle(staging, check_hashes=False)
        tasks, failed = judge(opened, reference, accept_quality_loss=accept_quality_loss)
        accepted: dict[Graph, str] = {}
        if accept_quality_loss:
            accepted, failed = failed, {}
        for name, precision in failed:
            precisions[name].remove(precision)
            _graph(staging, name, precision).unlink()
        values = [check for check in values if check.precision in precisions[check.part]]
        if GPU_ENGINE in targets:
            half = write_half_parts(
                model, staging, reference, precisions, step, accept_quality_loss=accept_quality_loss
            )
            for name, precision in half.chosen.items():
                precisions[name].append(precision)
            values += half.values.values()
            tasks += half.tasks
            failed |= half.refused
            accepted |= half.accepted
        write_manifest(staging, model, precisions, values, tasks, accepted)
        open_bundle(staging)
        put_in_place(staging, out)
    return BundleReport(open_bundle(out, check_hashes=False), tuple(values), tuple(tasks), refused | failed)


def verify_bundle(
    folder: Path,
    *,
    trained: Path | None,
    adapter: Path | None = None,
    llm_base: Path | None = None,
    check_set: CheckSet | None = None,
    on_step: Step | None = None,
) -> BundleReport:
    """Repeat every check on a bundle: hashes, names, axes, values on random inputs, answers on conversations.

    trained, adapter, llm_base: the weights it was made from. check_set: None for the shipped conversations.
    Returns: the comparison; answers that differ too much are its `problems`.
    Raises: BundleError: damaged. VerificationError: names, axes, constants or fp32 values do not match torch's.
    """
    step = on_step or (lambda _what: None)
    step("checking hashes")
    bundle = open_bundle(folder)
    step("loading weights")
    model = build_parts(bundle.preset, trained, adapter, llm_base)
    if bundle.manifest.get("weights") != weights_hashes(model):
        raise VerificationError(
            "the bundle was made from other weights than those at hand",
            hint="name its trained weights: --trained DIR --llm DIR; and fetch its base weights: mechm weights fetch",
        )
    if (bundle.decision, bundle.fusion, bundle.llama) != (model.decision, model.fusion_windows, llama_files(model)):
        raise VerificationError("the bundle decides with other constants, or reads other sizes, than its weights do")
    if absent := sorted({part.name for part in model} - set(bundle.parts)):
        raise VerificationError(f"the bundle lacks the parts {', '.join(absent)}")
    values = []
    for part in model:
        for precision, name in bundle.parts[part.name].files.items():
            step(f"{part.name} {precision}: comparing values")
            values.append(check_values(part, bundle.path(name), precision))
    checks = check_set or shipped_check_set()
    step(f"comparing answers on {checks.name}")
    reference = ask_torch(bundle, model, checks)
    tasks = list(compare(bundle, reference, dict.fromkeys(bundle.parts)))
    # As they were judged: w8 on recordings too, and 16 bits as a GPU's engine would run them, part by part.
    mixed = []
    if any(W8 in part.files for part in bundle.parts.values()):
        mixed.append({name: W8 if W8 in part.files else "fp32" for name, part in bundle.parts.items()})
    if any(set(HALF) & part.files.keys() for part in bundle.parts.values()):
        mixed.append({name: ENGINES[GPU_ENGINE].default_precision(part) for name, part in bundle.parts.items()})
    if mixed and not checks.recorded:
        reference = ask_torch(bundle, model, replace(checks, recorded=recordings_of(checks)))
    for precisions in mixed:
        tasks += compare(bundle, reference, precisions)
    return BundleReport(bundle, tuple(values), tuple(tasks))


def require_targets(targets: Collection[Target]) -> None:
    """Raises: MissingExtraError: what precisions are to be made with or checked on is not installed."""
    needed = [("openvino", "openvino")] if "openvino" in targets else []
    if {"openvino", GPU_ENGINE} & set(targets):
        needed += [("av", "media"), ("PIL", "media")]  # what is heard and seen is judged on recordings
    for package, extra in needed:
        if find_spec(package) is None:
            raise MissingExtraError(package, extra=extra)


def _precisions(part: ExportPart, targets: Collection[Target]) -> list[str]:
    lower = ["int8"] if "onnxruntime" in targets else []
    return ["fp32", *lower, *([W8] if "openvino" in targets and part.int8.portable == "weights" else [])]


def _write_part(
    part: ExportPart,
    staging: Path,
    feeds: Sequence[Feeds],
    precisions: Collection[str],
    keep: Proposal | None,
    step: Step,
) -> Iterator[ValueCheck]:
    portable, int8, w8 = (_graph(staging, part.name, precision) for precision in ("fp32", "int8", W8))
    portable.parent.mkdir(exist_ok=True)
    if part.write is not None:
        for precision in precisions:
            step(f"{part.name}: writing {precision}")
            part.write(part, _graph(staging, part.name, precision), precision)
            yield check_values(part, _graph(staging, part.name, precision), precision)
        return
    step(f"{part.name}: exporting fp32")
    export_graph(part, portable, "portable")
    yield check_values(part, portable, "fp32")
    if W8 in precisions:
        step(f"{part.name}: exporting {W8}")
        quantize_weights(portable, w8, part.int8, feeds)
        yield check_values(part, w8, W8)
    if "int8" not in precisions:
        return
    step(f"{part.name}: exporting int8")
    base = portable
    if part.n_heads:  # else there is no attention to fuse, and tracing again takes longer than all the rest
        base = staging / f"{part.name}.fused.onnx"
        export_graph(part, base, "fused")
    kept = [] if keep is None else _kept_layers(keep, portable, base)
    quantize_int8(base, int8, part.int8, feeds, kept)
    if base != portable:
        base.unlink()
    yield check_values(part, int8, "int8")


def _kept_layers(keep: Proposal, portable: Path, base: Path) -> list[str]:
    """The layers of a proposal in the graph that int8 is made of.

    Raises: InputError: it was made for another graph.
    """
    if keep.onnx_sha256 != file_sha256(portable):
        raise InputError(
            f"the layers to keep of the part {keep.part} were proposed for other weights",
            hint=f"on a bundle of these: mechm export diagnose --part {keep.part} --precision int8 --write FILE",
        )
    return matching_layers(onnx.load(portable), keep.kept, onnx.load(base))


def _write_static(
    model: ModelParts, staging: Path, checks: CheckSet, step: Step
) -> Iterator[tuple[str, ValueCheck | str]]:
    """Write the w8 form of what is heard and seen; a part's name, and its check or why it has none."""
    parts = [part for part in model if part.int8.portable == "static"]
    step(f"{', '.join(part.name for part in parts)}: listening and looking for {W8}")
    inputs = recorded_inputs(open_bundle(staging, check_hashes=False), checks.recorded, [part.name for part in parts])
    for part in parts:
        if not inputs[part.name]:
            yield part.name, "nothing in the recordings reaches it, so that its scales are unknown"
            continue
        step(f"{part.name}: exporting {W8}")
        path = _graph(staging, part.name, W8)
        quantize_static_int8(_graph(staging, part.name, "fp32"), path, inputs[part.name])
        yield part.name, check_values(part, path, W8)


def _graph(folder: Path, part: str, precision: str) -> Path:
    return folder.joinpath(*graph_name(part, precision).split("/"))
