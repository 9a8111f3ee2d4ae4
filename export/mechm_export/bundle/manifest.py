"""Writing `bundle.json`: parts, constants, checks, hashes, versions, licences.

`mechm_runtime.bundle.open` reads it. It holds no time stamp and no path of the machine: equal weights give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mechm.llm.combination import ADAPTER_FILE
from mechm.llm.stored_projector import PROJECTOR_FILE, PROJECTOR_FOLDER
from mechm.model.build import CARD_FILE
from mechm.model.config import ModelConfig
from mechm.model.detector import WEIGHTS_NAME
from mechm.model.preprocessing import log_mel_config, scene_config
from mechm_export.bundle.licences import licences_of, licences_text, provenances
from mechm_export.gate.comparison import TaskCheck, ValueCheck
from mechm_export.parts import ModelParts
from mechm_runtime.bundle.config import FaceConfig, TextConfig
from mechm_runtime.bundle.manifest import (
    ACCEPTED,
    LLAMA,
    MANIFEST,
    SCHEMA_VERSION,
    SIGNATURE,
    Bundle,
    LlamaFiles,
    manifest_id,
)
from mechm_runtime.bundle.open import file_sha256
from mechm_runtime.bundle.terms import LICENCES_FILE
from mechm_runtime.system.atomic_write import replaced_file
from mechm_runtime.types import EMOTIONS

STATED_VERSIONS = ("mechm", "torch", "transformers", "onnx", "onnxscript", "onnxruntime")
"""Packages whose versions the manifest states."""

LLAMA_TOKENIZER = "llm/tokenizer.json"


def graph_name(part: str, precision: str) -> str:
    """Path of a part's graph in a bundle."""
    return f"onnx/{part}.{precision}.onnx"


def graph_path(folder: Path, part: str, precision: str) -> Path:
    """Path of a part's graph in the folder of a bundle."""
    return folder.joinpath(*graph_name(part, precision).split("/"))


def write_manifest(
    staging: Path,
    model: ModelParts,
    precisions: Mapping[str, Sequence[str]],
    values: Sequence[ValueCheck],
    tasks: Sequence[TaskCheck],
    accepted: Mapping[tuple[str, str], str] | None = None,
) -> None:
    """Write the manifest of a folder that holds everything else.

    precisions: part -> the precisions whose graphs are there. accepted: graphs that are there although they fail the
    gate, part and precision -> the reason.
    """
    config = model.config
    cards, licences = _cards(model), licences_of(model)
    (staging / LICENCES_FILE).write_text(licences_text(licences, cards), encoding="utf-8")
    files = sorted(path for path in staging.rglob("*") if path.is_file() and path.name != MANIFEST)
    manifest: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "preset": config.preset,
        "labels": list(EMOTIONS),
        "parts": {
            part.name: {
                "inputs": [asdict(tensor) for tensor in part.inputs],
                "outputs": [asdict(tensor) for tensor in part.outputs],
                "files": {precision: graph_name(part.name, precision) for precision in precisions[part.name]},
                "default": "int8" if part.int8.default and "int8" in precisions[part.name] else "fp32",
            }
            for part in model
        },
        "preprocessing": {
            "text": asdict(text_preprocessing(config)),
            "log_mel": asdict(log_mel_config(config)),
            "scene": asdict(scene_config(config)),
            "faces": asdict(FaceConfig()),
            "fusion": asdict(model.fusion_windows),
        },
        "model": json.loads(config.to_json()),
        "decision": asdict(model.decision),
        "checks": {"values": [asdict(check) for check in values], "task": [asdict(task) for task in tasks]},
        "card": cards["card"],
        "weights": weights_hashes(model),
        "licences": licences,
        "versions": {name: version(name) for name in STATED_VERSIONS},
        "files": {path.relative_to(staging).as_posix(): file_facts(path) for path in files},
    }
    if accepted:
        manifest["checks"][ACCEPTED] = [
            {"part": part, "precision": precision, "reason": reason} for (part, precision), reason in accepted.items()
        ]
    if (files_of_llama := llama_files(model)) is not None and model.llama is not None:
        manifest[LLAMA] = {
            **asdict(files_of_llama),
            **cards[LLAMA],
            "scores": model.llama.fitted.scores,
        }
    manifest = json.loads(json.dumps(manifest))
    manifest["id"] = manifest_id(config.preset, manifest)
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (staging / MANIFEST).write_text(text, encoding="utf-8")


def file_facts(path: Path) -> dict[str, Any]:
    """The manifest's entry of a file: its sha256 and its size in bytes."""
    return {"sha256": file_sha256(path), "size_bytes": path.stat().st_size}


def replace_manifest(bundle: Bundle, changes: Mapping[str, Any]) -> None:
    """Change entries of an opened bundle's manifest, and its id; other readers see the old manifest or the new one."""
    manifest: dict[str, Any] = json.loads(json.dumps({**bundle.manifest, **changes}))
    manifest["id"] = manifest_id(bundle.preset, manifest)
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    with replaced_file(bundle.folder / MANIFEST) as beside:
        beside.write_text(text, encoding="utf-8")
        (bundle.folder / SIGNATURE).unlink(missing_ok=True)  # it is for the old manifest


def llama_files(model: ModelParts) -> LlamaFiles | None:
    """The manifest's entry of the Llama, None for a bundle without one."""
    source = model.llama
    if source is None:
        return None
    return LlamaFiles(LLAMA_TOKENIZER, source.questions, source.fitted.combination, source.fitted.decision)


def text_preprocessing(config: ModelConfig) -> TextConfig:
    """How a preset's text is split into windows."""
    return TextConfig(max_tokens=config.text.max_tokens, context_tokens=config.text.max_tokens // 4)


def weights_hashes(model: ModelParts) -> dict[str, str]:
    """sha256 of the weights that the graphs were made from, with which `verify` compares those it is given."""
    hashes = {"tokenizer": file_sha256(model.tokenizer), "detector": file_sha256(model.detector / WEIGHTS_NAME)}
    if model.llama is not None:
        hashes["adapter"] = file_sha256(model.llama.adapter / ADAPTER_FILE)
        if model.llama.projector is not None:
            hashes["projector"] = file_sha256(model.llama.adapter / PROJECTOR_FOLDER / PROJECTOR_FILE)
    if model.trained is not None:
        hashes["trained"] = file_sha256(model.trained / "model.safetensors")
    for part, provenance in provenances(model).items():
        hashes[part] = ",".join(sorted(provenance.sha256.values()))
    return hashes


def _cards(model: ModelParts) -> dict[str, Any]:
    """The cards of everything trained, in the places that they have in the manifest."""
    llama = model.llama
    cards: dict[str, Any] = {"card": _card(model.trained)}
    if llama is not None:
        cards[LLAMA] = {"card": _card(llama.adapter)}
        if llama.projector is not None:
            cards[LLAMA]["projector_card"] = _card(llama.adapter / PROJECTOR_FOLDER)
    return cards


def _card(trained: Path | None) -> dict[str, Any]:
    if trained is None:
        return {"warning": "fusion and heads have random weights: for tests only"}
    card: dict[str, Any] = json.loads((trained / CARD_FILE).read_text(encoding="utf-8"))
    return card
