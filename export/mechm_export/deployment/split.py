"""Splitting a bundle: keeping what one deployment runs, one precision per part, and leaving out the rest.

The result is a bundle with its own id, which gives the same answers as the whole one in that precision. Nothing is
converted: graphs are copied byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mechm_export.deployment.contents import Contents
from mechm_runtime.bundle.manifest import (
    ACCEPTED,
    LLAMA,
    MANIFEST,
    PROJECTOR,
    SERVED,
    TOKENIZER_FILE,
    Bundle,
    PartFiles,
    manifest_id,
)
from mechm_runtime.bundle.modality import MODALITY_PARTS
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.bundle.precision import HALF, PORTABLE_INT8
from mechm_runtime.bundle.staging import check_target, staging_folder
from mechm_runtime.bundle.terms import LICENCES_FILE
from mechm_runtime.engines.spec import ENGINES, EngineName
from mechm_runtime.errors import BundleError, InputError
from mechm_runtime.system.atomic_write import put_in_place
from mechm_runtime.system.progress import Progress

LlamaForm = Literal["none", "onnx", "vllm"]

LLAMA_WEIGHTS = ("adapter", PROJECTOR, LLAMA)
"""Entries of the manifest's `weights` that a bundle without a Llama lacks."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """The deployment that a bundle is split for.

    engine: the engine that will run the graphs. precision: of every part; None for each part's default on that engine.
    llm: `none` leaves the Llama out, `onnx` keeps its graph, `vllm` keeps the weights for a server too; None keeps the
        graph if there is one. modalities: None for all that the bundle has.
    """

    engine: EngineName = "onnxruntime"
    precision: str | None = None
    llm: LlamaForm | None = None
    modalities: Sequence[str] | None = None


def split_bundle(folder: Path, out: Path, deployment: Deployment, *, on_progress: Progress | None = None) -> Bundle:
    """Write the files of a bundle that a deployment needs into another folder.

    Returns: the new bundle. A signature is not copied, since it is for another manifest.
    Raises: InputError: the engine does not run the precision, or unknown modalities. BundleError: damaged, or the
        bundle lacks a file that is asked for, or `out` exists and is not a bundle or cannot be written.
    """
    out = out.absolute()
    if out == folder.absolute():
        raise BundleError("a bundle cannot be split in its own folder", hint="give another --out")
    check_target(out)
    manifest = split_manifest(open_bundle(folder, check_hashes=False), deployment)
    bundle = open_bundle(folder, on_progress=on_progress)
    with staging_folder(out) as staging:
        contents = Contents(bundle, "copying", on_progress)
        for name in manifest["files"]:
            contents.copy(name, staging / name)
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        open_bundle(staging, check_hashes=False)
        put_in_place(staging, out)
    return open_bundle(out, check_hashes=False)


def split_manifest(bundle: Bundle, deployment: Deployment) -> dict[str, Any]:
    """The manifest of the split bundle.

    Raises: InputError, BundleError: as `split_bundle`.
    """
    modalities = _modalities(bundle, deployment)
    llm = _llm(bundle, deployment, modalities)
    kept_parts = {
        "fusion",
        *(part for m in modalities for part in MODALITY_PARTS[m]),
        *(() if llm == "none" else (LLAMA, PROJECTOR)),
    }
    precisions = {name: _precision(part, deployment) for name, part in bundle.parts.items() if name in kept_parts}
    files = {bundle.parts[name].files[precision] for name, precision in precisions.items()}
    files |= {TOKENIZER_FILE} if "text" in modalities else set()
    if llm != "none" and bundle.llama is not None:
        files.add(bundle.llama.tokenizer)
    if llm == "vllm" and bundle.served is not None:
        files |= {name for name in bundle.manifest["files"] if name.startswith(f"{bundle.served.folder}/")}
    files |= {LICENCES_FILE} & bundle.manifest["files"].keys()
    is_complete = modalities == bundle.modalities and (llm != "none" or bundle.llama is None)
    dropped = {*(() if llm != "none" else (LLAMA,)), *(() if llm == "vllm" else (SERVED,))}
    manifest: dict[str, Any] = {key: value for key, value in bundle.manifest.items() if key not in dropped}
    manifest |= {
        "parts": {name: _split_part(bundle.manifest["parts"][name], p) for name, p in precisions.items()},
        "checks": _checks(bundle.manifest.get("checks", {}), precisions, is_complete),
        "licences": _licences(bundle.manifest.get("licences", {}), kept_parts, modalities),
        "files": {name: facts for name, facts in bundle.manifest["files"].items() if name in files},
        "split_from": bundle.id,
    }
    if llm == "none":
        manifest["weights"] = {k: v for k, v in manifest.get("weights", {}).items() if k not in LLAMA_WEIGHTS}
    manifest["id"] = manifest_id(bundle.preset, manifest)
    return manifest


def _modalities(bundle: Bundle, deployment: Deployment) -> tuple[str, ...]:
    asked = bundle.modalities if deployment.modalities is None else deployment.modalities
    if unknown := sorted(set(asked) - set(MODALITY_PARTS)):
        raise InputError(f"unknown modality {unknown[0]!r}", hint=f"choose from {', '.join(MODALITY_PARTS)}")
    if not asked:
        raise InputError("no modality to keep", hint=f"choose from {', '.join(bundle.modalities)}")
    if absent := [modality for modality in asked if modality not in bundle.modalities]:
        raise BundleError(f"the bundle does not read {absent[0]}", hint=f"it reads {', '.join(bundle.modalities)}")
    return tuple(modality for modality in MODALITY_PARTS if modality in asked)


def _llm(bundle: Bundle, deployment: Deployment, modalities: Sequence[str]) -> LlamaForm:
    if "text" not in modalities:
        if deployment.llm not in (None, "none"):
            raise InputError("the Llama reads words, and text is left out", hint="keep text too, or --llm none")
        return "none"
    if deployment.llm is None:
        return "none" if bundle.llama is None else "onnx"
    if deployment.llm != "none" and bundle.llama is None:
        raise BundleError("the bundle has no Llama", hint="--llm none")
    if deployment.llm == "vllm" and bundle.served is None:
        raise BundleError(
            "the bundle has no Llama for vLLM",
            hint=f"with mechm[export]: mechm export llm --bundle {bundle.folder} adds it",
        )
    return deployment.llm


def _precision(part: PartFiles, deployment: Deployment) -> str:
    """The precision of a part that the deployment runs."""
    asked, engine = deployment.precision, deployment.engine
    if (asked == "int8" and engine != "onnxruntime") or (asked == PORTABLE_INT8 and engine != "openvino"):
        raise InputError(f"{engine} does not run {asked}", hint="leave --precision out, or give the other --engine")
    # Only the large parts have w8; openvino runs the others in fp32.
    precision = ENGINES[engine].default_precision(part) if asked in (None, PORTABLE_INT8) else str(asked)
    if precision not in part.files:
        raise BundleError(
            f"the bundle has no {precision} file of its {part.name} part",
            hint=f"it has {', '.join(part.files)}; without --precision every part gets its default",
        )
    return precision


def _split_part(part: Mapping[str, Any], precision: str) -> dict[str, Any]:
    return {**part, "files": {precision: part["files"][precision]}, "default": precision}


def _checks(checks: Mapping[str, Any], precisions: Mapping[str, str], is_complete: bool) -> dict[str, Any]:
    """The checks that hold for the split bundle.

    Answers were checked with all parts, so their checks hold only if no part is left out (`is_complete`).
    """
    lowest = next((p for p in (PORTABLE_INT8, "int8", *HALF) if p in precisions.values()), "fp32")
    of_graphs = {
        kind: [check for check in checks.get(kind, ()) if precisions.get(check["part"]) == check["precision"]]
        for kind in ("values", ACCEPTED)
    }
    answers = [check for check in checks.get("task", ()) if is_complete and check["precision"] == lowest]
    return {"task": answers, **{kind: found for kind, found in of_graphs.items() if found or kind == "values"}}


def _licences(licences: Mapping[str, str], kept_parts: set[str], modalities: Sequence[str]) -> dict[str, str]:
    present = kept_parts | ({"detector"} if "face" in modalities else set())
    return {name: licence for name, licence in licences.items() if name in present}
