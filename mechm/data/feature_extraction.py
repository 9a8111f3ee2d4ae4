"""Extracts the fusion's inputs from recordings for training, as the runtime's pipeline does, with torch encoders.

Decoding (in a separate process), spectrograms, face detection and frames are the runtime's own code; only the encoders
run in torch instead of as exported graphs. Storing features is `feature_store`; corpora are not known here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mechm.model.build import build_audio_encoder, build_scene_encoder
from mechm.model.config import ModelConfig
from mechm.model.detector import YuNet
from mechm.model.expression import ExpressionConfig, ExpressionNetwork
from mechm.model.preprocessing import fusion_windows, log_mel_config, scene_config
from mechm.weights import weights_path
from mechm.weights.fetch import read_provenance
from mechm_runtime.analysis.decoding import STILL_S
from mechm_runtime.bundle.config import FaceConfig, FusionWindows, LogMelConfig, SceneConfig
from mechm_runtime.errors import InputError
from mechm_runtime.fusion.inputs import FusionInputs
from mechm_runtime.media import MediaReader, Segment
from mechm_runtime.modalities.face import FaceEncoder
from mechm_runtime.modalities.face_detection import FaceDetector
from mechm_runtime.modalities.scene import SceneEncoder
from mechm_runtime.modalities.voice import VoiceEncoder
from mechm_runtime.types import Conversation, Utterance

FEATURES_VERSION = 2
"""Version of the features' computation; increased when the same recordings and weights give other features."""

ENCODERS = ("audio", "scene", "expression")
"""Parts whose weights the features depend on, beside the face detector."""

MAX_FLOAT16 = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class Span:
    """Location of one utterance in the recordings: its own clip, or a section of its conversation's recording.

    start_s, end_s: seconds from the recording's start; None for the whole file.
    """

    path: Path
    start_s: float | None = None
    end_s: float | None = None


def span_of(conversation: Conversation, utterance: Utterance) -> Span | None:
    """Return the utterance's span: its clip, else a section of the conversation's recording; None without either."""
    if utterance.media is not None:
        return Span(utterance.media)
    if conversation.media is None or utterance.start_s is None or utterance.end_s is None:
        return None
    return Span(conversation.media, utterance.start_s, utterance.end_s)


@dataclass(frozen=True, slots=True)
class Features:
    """One utterance's inputs to the fusion beside its text; names and widths as in `FusionInputs`.

    audio: float32 (audio tokens, audio width); audio_mask: bool (). scene: float32 (n_frames, scene width); scene_mask:
    bool (n_frames,). face: float32 (n_frames * max_faces, face width); face_mask: bool (n_frames * max_faces,).
    missing: modality -> reason why it is masked.
    """

    audio: npt.NDArray[np.float32]
    audio_mask: npt.NDArray[np.bool_]
    scene: npt.NDArray[np.float32]
    scene_mask: npt.NDArray[np.bool_]
    face: npt.NDArray[np.float32]
    face_mask: npt.NDArray[np.bool_]
    missing: Mapping[str, str]

    @property
    def usable(self) -> bool:
        """Whether any modality is present."""
        return bool(self.audio_mask.any() or self.scene_mask.any() or self.face_mask.any())


class TorchPart:
    """A torch module behind the interface of the runtime's graphs
    (`mechm_runtime.engines.base.GraphRunner`).

    inputs: names of the module's arguments, in order. outputs: names of its results.
    """

    def __init__(self, module: nn.Module, inputs: Sequence[str], outputs: Sequence[str], device: torch.device) -> None:
        self._module = module.to(device)
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._device = device

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the module on arrays by input name and return arrays by output name."""
        with torch.inference_mode():
            given = (torch.from_numpy(np.ascontiguousarray(inputs[name])).to(self._device) for name in self._inputs)
            answer = self._module(*given)
            values = (answer,) if isinstance(answer, torch.Tensor) else answer
            return {n: value.float().cpu().numpy() for n, value in zip(self._outputs, values, strict=True)}


class FeatureExtractor:
    """Extracts features from decoded segments. May be used from several threads at once.

    fingerprint: hash of everything the features depend on besides the recording (weights, sizes, constants).
    """

    def __init__(
        self, voice: VoiceEncoder, faces: FaceEncoder, scene: SceneEncoder, sizes: FusionWindows, fingerprint: str
    ) -> None:
        self._voice = voice
        self._faces = faces
        self._scene = scene
        self.sizes = sizes
        self.fingerprint = fingerprint

    @classmethod
    def from_preset(cls, config: ModelConfig, device: torch.device | None = None) -> FeatureExtractor:
        """Load the encoders of a preset with its base weights; those of `tiny` are random, as in its exported bundle.

        Raises: WeightsError: base weights are missing. InputError: the preset's speech encoder does not take
            spectrograms, the only form of audio that the runtime's pipeline computes. MissingExtraError: without the
            `media` extra.
        """
        if config.audio.architecture != "whisper":
            raise InputError(
                f"the pipeline reads voices as spectrograms, and the speech encoder of {config.preset} cannot",
                hint="train on clips with --preset small",
            )
        device = device or torch.device("cpu")
        tiny = config.preset == "tiny"
        folders = {name: None if tiny else weights_path(name, config.preset) for name in ENCODERS}
        detector = weights_path("detector", "small" if tiny else config.preset)
        log_mel, scene, faces = log_mel_config(config), scene_config(config), FaceConfig()
        sizes = fusion_windows(config)
        voice = build_audio_encoder(config, folders["audio"])
        frames = build_scene_encoder(config, folders["scene"])
        expression = build_expression(folders["expression"])
        return cls(
            VoiceEncoder(log_mel, TorchPart(voice, ("mel", "mel_frames"), ("audio_tokens",), device)),
            FaceEncoder(
                FaceDetector(
                    TorchPart(YuNet.from_pretrained(detector), ("pixel_values",), ("scores", "boxes"), device), faces
                ),
                TorchPart(expression, ("pixel_values",), ("expression_logits",), device),
                sizes,
            ),
            SceneEncoder(scene, TorchPart(frames, ("pixel_values",), ("scene_token",), device), sizes),
            sizes,
            _fingerprint(config, (*(f for f in folders.values() if f is not None), detector), log_mel, scene, faces),
        )

    def read(self, segment: Segment) -> Features:
        """Extract a segment's features; all are masked if a value exceeds half precision, in which they are stored."""
        inputs = FusionInputs.absent((Utterance(1),), self.sizes)
        missing = {("face" if track == "video" else track): reason for track, reason in segment.missing.items()}
        if segment.samples is not None and (reason := self._voice.encode(0, segment.samples, inputs)):
            missing["audio"] = reason
        if segment.frames is not None and len(segment.frames):
            if reason := self._faces.encode(0, segment.frames, inputs):
                missing["face"] = reason
            self._scene.encode(0, segment.frames, inputs)
        values = (inputs.audio, inputs.scene, inputs.face)
        if not all(np.abs(value).max() < MAX_FLOAT16 for value in values):  # false for NaN, too
            inputs = FusionInputs.absent((Utterance(1),), self.sizes)
            missing["features"] = "its features are not finite in half precision"
        return Features(
            inputs.audio[0],
            np.asarray(inputs.audio_mask[0]),
            inputs.scene[0],
            inputs.scene_mask[0],
            inputs.face[0],
            inputs.face_mask[0],
            missing,
        )

    def read_spans(self, spans: Sequence[Span], reader: MediaReader) -> Iterator[tuple[Span, Features]]:
        """Extract features of spans of one recording, one by one in the order of their starts.

        Raises: MediaError: the recording cannot be decoded.
        """
        path = spans[0].path
        # As in the pipeline, a clip without a duration is a still picture.
        whole = (0.0, reader.probe(path).duration_s or STILL_S)
        times = [whole if s.start_s is None or s.end_s is None else (s.start_s, s.end_s) for s in spans]
        for index, segment in reader.iter_segments(path, times, n_frames=self.sizes.n_frames):
            yield spans[index], self.read(segment)


def build_expression(folder: Path | None) -> ExpressionNetwork:
    """Build the expression network, random where `folder` is None."""
    if folder is not None:
        return ExpressionNetwork.from_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ExpressionNetwork(ExpressionConfig()).eval()


def _fingerprint(
    config: ModelConfig, folders: Sequence[Path], log_mel: LogMelConfig, scene: SceneConfig, faces: FaceConfig
) -> str:
    provenances = [read_provenance(folder) for folder in folders]
    described = {
        "version": FEATURES_VERSION,
        "weights": sorted(value for p in provenances if p is not None for value in p.sha256.values()),
        "encoders": [asdict(config.audio), asdict(config.scene)],
        "preprocessing": [asdict(log_mel), asdict(scene), asdict(faces)],
        "frames": [config.n_frames, config.max_faces],
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
