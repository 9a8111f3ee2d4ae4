"""The manifest of a bundle, `bundle.json`: its entries as frozen dataclasses.

Reading checks it against the schema. It opens none of the files that the manifest lists (`open`).
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mechm_runtime.bundle.config import (
    CombinationConfig,
    DecisionConfig,
    FaceConfig,
    FusionWindows,
    LogMelConfig,
    QuestionConfig,
    SceneConfig,
    TextConfig,
)
from mechm_runtime.bundle.engine_file import EngineFile
from mechm_runtime.bundle.from_json import read_dataclass, read_value
from mechm_runtime.bundle.modality import MODALITY_PARTS
from mechm_runtime.errors import BundleError
from mechm_runtime.types import EMOTIONS

SCHEMA_VERSION = 1
MANIFEST = "bundle.json"
SIGNATURE = "bundle.sig"
"""The signature of the manifest, which lies beside it where somebody has signed the bundle."""
TOKENIZER_FILE = "tokenizer/tokenizer.json"
"""The text encoder's tokenizer, inside the bundle."""
LLAMA = "llama"
"""The part that is the Llama."""
PROJECTOR = "projector"
"""The part that computes the Llama's soft tokens; a Llama that reads text alone has none."""
ACCEPTED = "accepted"
"""Entry of the manifest's checks: graphs that change more answers than is allowed, and were written all the same."""
SERVED = "served"
"""The manifest's entry for a Llama that a server loads, and the folder below `llm/` where that lies."""
ENGINES = "engines"
"""The manifest's entry for TensorRT engines (`mechm export engines` adds them), and the folder they lie in."""
MAX_MANIFEST_BYTES = 4 << 20
REBUILD = (
    "get it again: mechm bundle fetch SOURCE --force; or make it again, with mechm[export]: mechm export bundle "
    "--preset small --out DIR"
)


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of a graph: axes are sizes, or names where they are dynamic."""

    name: str
    dtype: str
    axes: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class PartFiles:
    """One exported part.

    files: precision -> path inside the bundle. default: the precision to run where none is asked for.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    files: Mapping[str, str]
    default: str

    def width(self, name: str) -> int:
        """Size of an input's last axis.

        Raises: BundleError: there is no such input, or that axis is dynamic.
        """
        for tensor in self.inputs:
            if tensor.name == name and tensor.axes and isinstance(tensor.axes[-1], int):
                return tensor.axes[-1]
        raise BundleError(f"the {self.name} part has no input {name} of a fixed width", hint=REBUILD)


@dataclass(frozen=True, slots=True)
class LlamaFiles:
    """Files and constants of a bundle's Llama, beside its part `llama`.

    tokenizer: path inside the bundle. questions: windows of its prompts. combination: weights of its scores and the
    fusion's. decision: constants for the combined scores, in place of the fusion's own.
    """

    tokenizer: str
    questions: QuestionConfig
    combination: CombinationConfig
    decision: DecisionConfig


@dataclass(frozen=True, slots=True)
class ServedLlama:
    """The Llama's merged weights as a server loads them: a plain Hugging Face folder.

    folder: path inside the bundle. dtype: of the weights, `bf16`, `fp16` or `fp32`. quantization: of its linear layers,
    `int8` or `fp8`, or `none`.
    """

    folder: str
    dtype: str
    quantization: str

    def __post_init__(self) -> None:
        if self.dtype not in ("bf16", "fp16", "fp32") or self.quantization not in ("none", "int8", "fp8"):
            raise ValueError(f"a served Llama in {self.dtype}, quantized {self.quantization}")


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle; `manifest` is all of `bundle.json`.

    llama: None where it has no Llama. served: None where it has none for a server (`mechm export llm` adds it).
    engines: of TensorRT, at most one per part and library. learned: the modalities that were seen in training.
    """

    folder: Path
    id: str
    preset: str
    parts: Mapping[str, PartFiles]
    text: TextConfig
    log_mel: LogMelConfig
    scene: SceneConfig
    faces: FaceConfig
    fusion: FusionWindows
    decision: DecisionConfig
    llama: LlamaFiles | None
    served: ServedLlama | None
    engines: tuple[EngineFile, ...]
    learned: tuple[str, ...]
    manifest: Mapping[str, Any]

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities that it has all parts of; a bundle that was split may lack some."""
        return tuple(
            modality for modality, parts in MODALITY_PARTS.items() if all(part in self.parts for part in parts)
        )

    @property
    def default_modalities(self) -> tuple[str, ...]:
        """Modalities that are used by default: those that it has parts of and that were seen in training.

        All that it has parts of, where none of them was seen in training.
        """
        return tuple(modality for modality in self.modalities if modality in self.learned) or self.modalities

    def path(self, name: str) -> Path:
        """The path of a listed file.

        Raises: BundleError: it is not listed, so that nobody has checked what lies there.
        """
        if name not in self.manifest["files"]:
            raise BundleError(f"the bundle lists no {name}", hint=REBUILD)
        return self.folder.joinpath(*PurePosixPath(name).parts)


def foreign_files(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Files in a bundle's folder that are no part of it: all but the manifest, its signature and the listed files."""
    own = {MANIFEST, SIGNATURE, *manifest["files"]}
    present = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted({path.relative_to(folder).as_posix() for path in present} - own)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of a folder's `bundle.json`, unchecked.

    Raises: BundleError: there is none, or it is no JSON object.
    """
    path = folder / MANIFEST
    try:
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            raise BundleError(f"{MANIFEST} is a link or a special file, not a plain one", hint=REBUILD)
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{MANIFEST} is larger than {MAX_MANIFEST_BYTES >> 20} MiB", hint=REBUILD)
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}", hint=REBUILD) from error
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST} cannot be read: {type(error).__name__}", hint=REBUILD) from error
    if not isinstance(manifest, dict):
        raise BundleError(f"{MANIFEST} is not a JSON object", hint=REBUILD)
    return manifest


def manifest_id(preset: str, manifest: Mapping[str, Any]) -> str:
    """The bundle's id: preset and 12 hexadecimal digits of the manifest's own sha256 (without the id)."""
    content = {key: value for key, value in manifest.items() if key != "id"}
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return f"{preset}-{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"


def build_bundle(folder: Path, manifest: Mapping[str, Any]) -> Bundle:
    """The bundle that a manifest describes.

    Raises: ArithmeticError, AttributeError, LookupError, TypeError, ValueError, InputError: the manifest is damaged.
        BundleError: it was changed, or is too old.
    """
    if tuple(manifest["labels"]) != EMOTIONS:
        raise ValueError(f"labels are {manifest['labels']}, this library has {list(EMOTIONS)}")
    preset = str(manifest["preset"])
    if manifest["id"] != manifest_id(preset, manifest):
        raise BundleError(f"{MANIFEST} was changed after it was written", hint=REBUILD)
    parts = {name: _part(name, part) for name, part in manifest["parts"].items()}
    if "expression" in parts and "detector" not in parts:
        raise BundleError("the bundle has no face detector: older ones left that to OpenCV", hint=REBUILD)
    listed = set(manifest["files"])
    for part in parts.values():
        unlisted = sorted(set(part.files.values()) - listed)
        if unlisted:
            raise ValueError(f"part {part.name} names {unlisted[0]}, which is not listed")
    preprocessing = manifest["preprocessing"]
    return Bundle(
        folder=folder,
        id=str(manifest["id"]),
        preset=preset,
        parts=parts,
        text=read_dataclass(TextConfig, preprocessing["text"]),
        log_mel=read_dataclass(LogMelConfig, preprocessing["log_mel"]),
        scene=read_dataclass(SceneConfig, preprocessing["scene"]),
        faces=read_dataclass(FaceConfig, preprocessing["faces"]),
        fusion=read_dataclass(FusionWindows, preprocessing["fusion"]),
        decision=read_dataclass(DecisionConfig, manifest["decision"]),
        llama=_llama(manifest["llama"], parts, listed) if "llama" in manifest else None,
        served=_served(manifest[SERVED], listed) if SERVED in manifest else None,
        engines=tuple(_engine(one, parts, manifest["files"]) for one in manifest.get(ENGINES, [])),
        learned=_learned(manifest.get("card", {})),
        manifest=manifest,
    )


def _learned(card: Mapping[str, Any]) -> tuple[str, ...]:
    """The modalities that were seen in training; all where the card does not say."""
    said: tuple[str, ...] = read_value(card.get("learned", list(MODALITY_PARTS)), tuple[str, ...])
    if unknown := sorted(set(said) - set(MODALITY_PARTS)):
        raise ValueError(f"the card names a modality {unknown[0]!r}")
    return said


def _llama(values: Mapping[str, Any], parts: Mapping[str, PartFiles], listed: set[str]) -> LlamaFiles:
    tokenizer = read_value(values["tokenizer"], str)
    if LLAMA not in parts or tokenizer not in listed:
        raise ValueError("the Llama's graph or tokenizer is not listed")
    questions = read_dataclass(QuestionConfig, values["questions"])
    if questions.soft_tokens and PROJECTOR not in parts:
        raise ValueError("the Llama has soft tokens, and no projector that makes them")
    return LlamaFiles(
        tokenizer,
        questions,
        read_dataclass(CombinationConfig, values["combination"]),
        read_dataclass(DecisionConfig, values["decision"]),
    )


def _served(values: Mapping[str, Any], listed: set[str]) -> ServedLlama:
    served = read_dataclass(ServedLlama, values)
    if f"{served.folder}/config.json" not in listed:
        raise ValueError("the served Llama is not listed")
    return served


def _engine(values: Mapping[str, Any], parts: Mapping[str, PartFiles], files: Mapping[str, Any]) -> EngineFile:
    engine = read_dataclass(EngineFile, values)
    if engine.part not in parts or engine.file not in files:
        raise ValueError(f"an engine of {engine.part} is not listed")
    if engine.source not in files or files[engine.source]["sha256"] != engine.key.onnx_sha256:
        raise ValueError(f"the engine of {engine.part} was built from another ONNX than {engine.source}")
    return engine


def _part(name: str, part: Mapping[str, Any]) -> PartFiles:
    files = {precision: read_value(path, str) for precision, path in part["files"].items()}
    default = part["default"]
    if default not in files:
        raise ValueError(f"part {name} has no file of its default precision {default}")
    inputs, outputs = (tuple(_tensor(tensor) for tensor in part[key]) for key in ("inputs", "outputs"))
    return PartFiles(name, inputs, outputs, files, default)


def _tensor(tensor: Mapping[str, Any]) -> Tensor:
    axes = tuple(read_value(axis, int if isinstance(axis, int) else str) for axis in tensor["axes"])
    return Tensor(read_value(tensor["name"], str), read_value(tensor["dtype"], str), axes)
