"""Verifying a bundle: every check of its export, repeated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mechm_export.bundle.calibration import recordings_or_shipped
from mechm_export.bundle.manifest import llama_files, weights_hashes
from mechm_export.bundle.report import BundleReport
from mechm_export.bundle.write import Step
from mechm_export.gate.check_set import CheckSet, shipped_check_set
from mechm_export.gate.comparison import TaskCheck, ValueCheck, check_values
from mechm_export.gate.run import compare, torch_reference
from mechm_export.parts import ModelParts, build_parts
from mechm_runtime.bundle.manifest import Bundle
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.bundle.precision import HALF, PORTABLE_INT8
from mechm_runtime.engines.spec import ENGINES, GPU_ENGINE
from mechm_runtime.errors import VerificationError


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
    _check_constants(bundle, model)
    values = tuple(_compare_values(bundle, model, step))
    checks = check_set or shipped_check_set()
    step(f"comparing answers on {checks.name}")
    tasks = tuple(_compare_answers(bundle, model, checks))
    return BundleReport(bundle, values, tasks)


def _check_constants(bundle: Bundle, model: ModelParts) -> None:
    """Compare the bundle's weights, constants and parts with the model's.

    Raises: VerificationError: they differ.
    """
    if bundle.manifest.get("weights") != weights_hashes(model):
        raise VerificationError(
            "the bundle was made from other weights than those at hand",
            hint="give --trained DIR and --adapter DIR, and fetch its base weights: mechm weights fetch",
        )
    if (bundle.decision, bundle.fusion, bundle.llama) != (model.decision, model.fusion_windows, llama_files(model)):
        raise VerificationError("the bundle decides with other constants, or reads other sizes, than its weights do")
    if absent := sorted({part.name for part in model} - set(bundle.parts)):
        raise VerificationError(f"the bundle lacks the parts {', '.join(absent)}")


def _compare_values(bundle: Bundle, model: ModelParts, step: Step) -> Iterator[ValueCheck]:
    for part in model:
        for precision, name in bundle.parts[part.name].files.items():
            step(f"{part.name} {precision}: comparing values")
            yield check_values(part, bundle.path(name), precision)


def _compare_answers(bundle: Bundle, model: ModelParts, checks: CheckSet) -> Iterator[TaskCheck]:
    """Compare the default precisions, then w8 and 16 bits, as the export did.

    w8 and 16 bits are compared on recordings too; for 16 bits each part has the precision that a GPU's engine runs.
    """
    reference = torch_reference(bundle, model, checks)
    yield from compare(bundle, reference, dict.fromkeys(bundle.parts))
    mixed = []
    if any(PORTABLE_INT8 in part.files for part in bundle.parts.values()):
        mixed.append(
            {name: PORTABLE_INT8 if PORTABLE_INT8 in part.files else "fp32" for name, part in bundle.parts.items()}
        )
    if any(set(HALF) & part.files.keys() for part in bundle.parts.values()):
        mixed.append({name: ENGINES[GPU_ENGINE].default_precision(part) for name, part in bundle.parts.items()})
    if mixed and not checks.recorded:
        reference = torch_reference(bundle, model, replace(checks, recorded=recordings_or_shipped(checks)))
    for precisions in mixed:
        yield from compare(bundle, reference, precisions)
