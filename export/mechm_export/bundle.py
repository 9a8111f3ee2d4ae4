"""Write a bundle: export every part, check it, and put files and manifest where the runtime finds them.

Everything is made in a folder beside the target and renamed when it is whole: an interrupted export leaves the old
bundle as it was. A precision that fails the gate is not written.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mechm.model.build import CARD_FILE
from mechm.model.config import ModelConfig
from mechm.weights import part_of, weights_path
from mechm.weights.fetch import read_provenance
from mechm_export.data import check_conversations
from mechm_export.gate import TaskCheck, ValueCheck, check_task, check_values, torch_pipeline
from mechm_export.onnx_graph import export_graph
from mechm_export.parts import ExportPart, Feeds, ModelParts, build_parts
from mechm_export.quantize import quantize_int8
from mechm_runtime.bundle import MANIFEST, SCHEMA_VERSION, Bundle, file_sha256, manifest_id, open_bundle, read_manifest
from mechm_runtime.errors import BundleError, VerificationError
from mechm_runtime.features.faces import FaceConfig
from mechm_runtime.features.log_mel import LogMelConfig
from mechm_runtime.features.scene import SceneConfig
from mechm_runtime.pipeline import DETECTOR_FILE, TOKENIZER_FILE, Pipeline
from mechm_runtime.text import ConversationTokenizer, TextConfig
from mechm_runtime.types import EMOTIONS, Analysis, Conversation, LabelledConversation

SHIPPED_SPLIT = "mechm check conversations"
CALIBRATION_CONVERSATIONS = 100
VERSIONED = ("mechm", "torch", "transformers", "onnx", "onnxscript", "onnxruntime")

Step = Callable[[str], None]
"""Called with what is being done, as it starts."""


@dataclass(frozen=True, slots=True)
class CheckSet:
    """Conversations on which precisions are judged.

    name: the split, as the manifest carries it. labelled: annotated text. recorded: conversations with media.
    """

    name: str
    labelled: tuple[LabelledConversation, ...]
    recorded: tuple[Conversation, ...] = ()


@dataclass(frozen=True, slots=True)
class BundleReport:
    """What was written and how it compares."""

    bundle: Bundle
    values: tuple[ValueCheck, ...]
    tasks: tuple[TaskCheck, ...]
    refused: Mapping[str, str] = field(default_factory=dict)


def shipped_check_set() -> CheckSet:
    """The conversations that come with this package."""
    return CheckSet(SHIPPED_SPLIT, check_conversations())


def export_bundle(
    preset: str, out: Path, *, trained: Path | None, check_set: CheckSet | None = None, on_step: Step | None = None
) -> BundleReport:
    """Export a preset to a bundle folder.

    trained: folder of trained weights; None leaves fusion and heads random.
    check_set: what precisions are judged on; None for the shipped conversations.
    Raises: BundleError: `out` exists and is not a bundle, or cannot be written. WeightsError: weights are missing.
        VerificationError: fp32 does not match torch.
    """
    out = out.absolute()  # `.` has no name of its own
    check_target(out)
    step = on_step or (lambda _what: None)
    checks = check_set or shipped_check_set()
    step("loading weights")
    model = build_parts(preset, trained)
    with _written(out), _staging(out) as staging:
        calibration = {"text": _text_inputs(model, checks)}
        values = [check for part in model for check in _write_part(part, staging, calibration.get(part.name, []), step)]
        for source, name in ((model.tokenizer, TOKENIZER_FILE), (model.detector, DETECTOR_FILE)):
            target = staging.joinpath(*name.split("/"))
            target.parent.mkdir()
            shutil.copyfile(source, target)
        precisions = {part.name: ["fp32", "int8"] for part in model}
        _write_manifest(staging, model, precisions, values, [])
        step(f"comparing answers on {checks.name}")
        tasks, refused = _judge(open_bundle(staging, check_hashes=False), model, checks)
        for name in refused:
            precisions[name].remove("int8")
            _graph(staging, name, "int8").unlink()
        values = [check for check in values if check.precision in precisions[check.part]]
        _write_manifest(staging, model, precisions, values, tasks)
        open_bundle(staging)
        _replace(staging, out)
    return BundleReport(open_bundle(out, check_hashes=False), tuple(values), tuple(tasks), refused)


def verify_bundle(
    folder: Path, *, trained: Path | None, check_set: CheckSet | None = None, on_step: Step | None = None
) -> BundleReport:
    """Repeat every check on a bundle: hashes, names, axes, values on random inputs, answers on conversations.

    trained: the weights it was made from. check_set: None for the shipped conversations.
    Raises: BundleError: damaged. VerificationError: it does not match torch.
    """
    step = on_step or (lambda _what: None)
    step("checking hashes")
    bundle = open_bundle(folder)
    step("loading weights")
    model = build_parts(bundle.preset, trained)
    if bundle.manifest.get("weights") != _weights_hashes(model):
        raise VerificationError(
            "the bundle was made from other weights than those at hand",
            hint="name its trained weights: --trained DIR; and fetch its base weights: mechm weights fetch",
        )
    if (bundle.decision, bundle.fusion) != (model.decision, model.fusion_windows):
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
    tasks = list(_compare(bundle, _reference(bundle, model, checks), {part.name: None for part in model}))
    if problems := _problems(tasks):
        raise VerificationError("; ".join(problems))
    return BundleReport(bundle, tuple(values), tuple(tasks))


def check_target(out: Path) -> None:
    """Refuse a target that would destroy something else: an old bundle goes as a whole, and nothing else with it.

    Raises: BundleError: it exists and is neither an empty folder nor a bundle, or holds more than a bundle's files.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise BundleError(f"{out} is not a folder", hint="give another --out")
    if not out.is_dir() or not any(out.iterdir()):
        return
    try:
        listed = read_manifest(out)["files"]
        foreign = sorted(
            name
            for path in out.rglob("*")
            if not path.is_dir() and (name := path.relative_to(out).as_posix()) not in {MANIFEST, *listed}
        )
    except (BundleError, KeyError, TypeError) as error:
        raise BundleError(f"{out} is a folder with other things in it", hint="give a new or empty --out") from error
    if foreign:
        raise BundleError(f"{out} holds more than its bundle: {foreign[0]}", hint="move that away, or give a new --out")


def _write_part(part: ExportPart, staging: Path, feeds: Sequence[Feeds], step: Step) -> Iterator[ValueCheck]:
    portable, int8 = (_graph(staging, part.name, precision) for precision in ("fp32", "int8"))
    portable.parent.mkdir(exist_ok=True)
    step(f"{part.name}: exporting fp32")
    export_graph(part, portable, "portable")
    yield check_values(part, portable, "fp32")
    step(f"{part.name}: exporting int8")
    if part.n_heads:
        fused = staging / f"{part.name}.fused.onnx"
        export_graph(part, fused, "fused")
        quantize_int8(fused, int8, part.int8, feeds)
        fused.unlink()
    else:  # there is no attention to fuse, and tracing again takes longer than all the rest
        quantize_int8(portable, int8, part.int8, feeds)
    yield check_values(part, int8, "int8")


def _text_inputs(model: ModelParts, checks: CheckSet) -> list[Feeds]:
    """Token windows of the check set's conversations, the first hundred: what int8 is calibrated on."""
    tokenizer = ConversationTokenizer(model.tokenizer, _text_preprocessing(model.config))
    windows = [tokenizer(one.conversation.utterances) for one in checks.labelled[:CALIBRATION_CONVERSATIONS]]
    return [{"input_ids": w.input_ids, "attention_mask": w.attention_mask} for w in windows if len(w.input_ids)]


@dataclass(frozen=True, slots=True)
class _Reference:
    """Torch's answers on a check set."""

    checks: CheckSet
    text: tuple[Analysis, ...]
    recorded: tuple[Analysis, ...]


def _reference(bundle: Bundle, model: ModelParts, checks: CheckSet) -> _Reference:
    pipeline = torch_pipeline(bundle, model)
    return _Reference(
        checks,
        tuple(pipeline.analyze(one.conversation) for one in checks.labelled),
        tuple(pipeline.analyze(conversation) for conversation in checks.recorded),
    )


def _judge(bundle: Bundle, model: ModelParts, checks: CheckSet) -> tuple[list[TaskCheck], dict[str, str]]:
    """Judge both precisions; where int8 as a whole is not good enough, find the parts to blame.

    Returns: the checks of what is kept, and part -> why its int8 form is refused.
    Raises: VerificationError: fp32 changes answers.
    """
    reference = _reference(bundle, model, checks)
    names = [part.name for part in model]
    tasks = list(_compare(bundle, reference, dict.fromkeys(names, "fp32")))
    if wrong := _problems(tasks):
        raise VerificationError(f"fp32: {'; '.join(wrong)}")
    refused: dict[str, str] = {}
    alone: dict[str, list[TaskCheck]] = {}
    while len(refused) < len(names):
        candidates = {name: "fp32" if name in refused else "int8" for name in names}
        lower = list(_compare(bundle, reference, candidates))
        problems = _problems(lower)
        if not problems:
            return tasks + lower, refused
        alone = alone or {name: list(_compare(bundle, reference, _alone(name, names))) for name in names}
        left = {name: checks for name, checks in alone.items() if name not in refused}
        blamed = {name: found[0] for name, checks in left.items() if (found := _problems(checks))}
        if not blamed:  # each passes alone, together they are too much: the one that changes most goes
            worst = max(left, key=lambda name: max(check.changes for check in left[name]))
            blamed = {worst: f"together with other parts, {problems[0]}"}
        refused |= blamed
    return tasks, refused


def _alone(name: str, names: Sequence[str]) -> dict[str, str]:
    return {other: "int8" if other == name else "fp32" for other in names}


def _problems(tasks: Iterable[TaskCheck]) -> list[str]:
    return [task.problem for task in tasks if task.problem]


def _compare(bundle: Bundle, reference: _Reference, precisions: Mapping[str, str | None]) -> Iterator[TaskCheck]:
    """Torch against the bundle's graphs, text first, recordings second; a precision of None is the part's default."""
    candidate = Pipeline(bundle, precisions=precisions)
    lowest = "int8" if "int8" in precisions.values() else "fp32"
    name = "default" if None in precisions.values() else lowest
    checks = reference.checks
    conversations = [one.conversation for one in checks.labelled]
    yield check_task(checks.name, name, conversations, reference.text, candidate, checks.labelled)
    if checks.recorded:
        yield check_task(f"{checks.name}, recordings", name, checks.recorded, reference.recorded, candidate)


def _write_manifest(
    staging: Path,
    model: ModelParts,
    precisions: Mapping[str, Sequence[str]],
    values: Sequence[ValueCheck],
    tasks: Sequence[TaskCheck],
) -> None:
    config = model.config
    files = sorted(path for path in staging.rglob("*") if path.is_file() and path.name != MANIFEST)
    manifest: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "preset": config.preset,
        "labels": list(EMOTIONS),
        "parts": {
            part.name: {
                "inputs": [asdict(tensor) for tensor in part.inputs],
                "outputs": [asdict(tensor) for tensor in part.outputs],
                "files": {precision: _graph_name(part.name, precision) for precision in precisions[part.name]},
                "default": "int8" if part.int8.default and "int8" in precisions[part.name] else "fp32",
            }
            for part in model
        },
        "preprocessing": {
            "text": asdict(_text_preprocessing(config)),
            "log_mel": asdict(LogMelConfig(n_mels=config.audio.n_mels)),
            "scene": asdict(_scene_preprocessing(config)),
            "faces": asdict(FaceConfig()),
            "fusion": asdict(model.fusion_windows),
        },
        "model": json.loads(config.to_json()),
        "decision": asdict(model.decision),
        "checks": {"values": [asdict(check) for check in values], "task": [asdict(task) for task in tasks]},
        "card": _card(model.trained),
        "weights": _weights_hashes(model),
        "licences": _licences(model),
        "versions": {name: version(name) for name in VERSIONED},
        "files": {
            path.relative_to(staging).as_posix(): {"sha256": file_sha256(path), "size_bytes": path.stat().st_size}
            for path in files
        },
    }
    manifest = json.loads(json.dumps(manifest))
    manifest["id"] = manifest_id(config.preset, manifest)
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (staging / MANIFEST).write_text(text, encoding="utf-8")


def _text_preprocessing(config: ModelConfig) -> TextConfig:
    return TextConfig(max_tokens=config.text.max_tokens, context_tokens=config.text.max_tokens // 4)


def _scene_preprocessing(config: ModelConfig) -> SceneConfig:
    if config.scene.architecture == "dinov2":
        return SceneConfig(image_size=config.scene.image_size)
    # EVA-CLIP was trained with the constants of OpenAI's CLIP.
    side = config.scene.image_size
    return SceneConfig(side, side, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def _weights_hashes(model: ModelParts) -> dict[str, str]:
    """sha256 of what the graphs were made from, so that a verifier knows whether it holds the same."""
    hashes = {"tokenizer": file_sha256(model.tokenizer), "detector": file_sha256(model.detector)}
    if model.trained is not None:
        hashes["trained"] = file_sha256(model.trained / "model.safetensors")
    for part, provenance in _provenances(model).items():
        hashes[part] = ",".join(sorted(provenance.sha256.values()))
    return hashes


def _licences(model: ModelParts) -> dict[str, str]:
    licences = {part: f"{p.licence} ({p.origin})" for part, p in _provenances(model).items()}
    # `tiny` has the detector of `small`, whose folder says so.
    detector = read_provenance(model.detector.parent)
    if detector is not None:
        credit = part_of(detector.preset, detector.part).attribution
        licences["detector"] = f"{detector.licence} ({detector.origin}); {credit}"
    return licences


def _provenances(model: ModelParts) -> dict[str, Any]:
    if model.config.preset == "tiny":
        return {}
    found = {
        part.name: read_provenance(weights_path(part.name, model.config.preset))
        for part in model
        if part.name != "fusion"
    }
    return {name: provenance for name, provenance in found.items() if provenance is not None}


def _card(trained: Path | None) -> dict[str, Any]:
    if trained is None:
        return {"warning": "fusion and heads have random weights: for tests only"}
    card: dict[str, Any] = json.loads((trained / CARD_FILE).read_text(encoding="utf-8"))
    return card


def _graph_name(part: str, precision: str) -> str:
    return f"onnx/{part}.{precision}.onnx"


def _graph(folder: Path, part: str, precision: str) -> Path:
    return folder / "onnx" / f"{part}.{precision}.onnx"


@contextlib.contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A folder beside the target that is gone afterwards, whatever happens."""
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent, ignore_cleanup_errors=True) as folder:
        staging = Path(folder) / out.name
        staging.mkdir()
        yield staging


def _replace(staging: Path, out: Path) -> None:
    """Put the new bundle in the old one's place; the old one goes only once the new one is there."""
    old = staging.parent / "replaced"
    if out.exists():
        out.rename(old)
    try:
        staging.rename(out)
    except BaseException:
        if old.exists():
            old.rename(out)
        raise


@contextlib.contextmanager
def _written(out: Path) -> Iterator[None]:
    """Say of the system's refusals (a full disk, a folder of somebody else) what they prevented.

    Raises: BundleError.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise BundleError(f"the bundle cannot be written to {out}: {reason}", hint="give another --out") from error
