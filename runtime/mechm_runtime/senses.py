"""The encoders that a pipeline has, one a modality, loaded when something is first there for them to read.

Assembled from a bundle; each fills its fields of the inputs that `Work` holds. It decodes no media (`recorded`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from mechm_runtime.bundle import Bundle
from mechm_runtime.engine import GraphRunner
from mechm_runtime.features.faces import FaceFinder
from mechm_runtime.media import Segment
from mechm_runtime.perception import FaceReader, SceneReader, TextReader, VoiceReader
from mechm_runtime.text import ConversationTokenizer
from mechm_runtime.types import Utterance
from mechm_runtime.work import Work

TOKENIZER_FILE = "tokenizer/tokenizer.json"
DETECTOR_FILE = "faces/detector.onnx"


class Senses:
    """Reads words, voices, faces and frames.

    modalities: which are used. load: what runs a part of the bundle. It may serve several threads.
    """

    def __init__(self, bundle: Bundle, modalities: Sequence[str], load: Callable[[str], GraphRunner]) -> None:
        self.modalities = tuple(modalities)
        self._bundle = bundle
        self._load = load
        self._lock = threading.Lock()
        self._text: TextReader | None = None
        if "text" in self.modalities:
            self._text = TextReader(ConversationTokenizer(bundle.path(TOKENIZER_FILE), bundle.text), load("text"))
        self._voice: VoiceReader | None = None
        self._faces: FaceReader | None = None
        self._scene: SceneReader | None = None

    @property
    def reads_media(self) -> bool:
        """Whether anything but words is read."""
        return self.modalities != ("text",)

    @property
    def n_frames(self) -> int:
        """How many frames of an utterance are read."""
        return self._bundle.fusion.n_frames if {"face", "scene"} & set(self.modalities) else 0

    def read_text(
        self, utterances: Sequence[Utterance], work: Work, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Read the words of a conversation; nothing where words are not used.

        progress: called with utterances done and their number.
        """
        if self._text is None:
            return
        with work.timed("text"):
            self._text.read(utterances, work.inputs, progress)
        for index in (~work.inputs.text_mask).nonzero()[0]:
            work.missing[index]["text"] = "no words known"
        if progress is not None:
            progress(len(utterances), len(utterances))

    def read_segment(self, index: int, segment: Segment, work: Work) -> None:
        """Read what was decoded of one utterance."""
        for track, reason in segment.missing.items():
            self.note(work, index, (track,), reason)
        if segment.samples is not None and "audio" in self.modalities:
            with work.timed("audio"):
                reason = self._voice_reader().read(index, segment.samples, work.inputs)
            if reason:
                work.missing[index]["audio"] = reason
        if segment.frames is not None and len(segment.frames):
            if "face" in self.modalities:
                with work.timed("face"):
                    reason = self._face_reader().read(index, segment.frames, work.inputs)
                if reason:
                    work.missing[index]["face"] = reason
            if "scene" in self.modalities:
                with work.timed("scene"):
                    self._scene_reader().read(index, segment.frames, work.inputs)

    def note(self, work: Work, index: int, tracks: Sequence[str], reason: str) -> None:
        """Say that a track is missing, in terms of the modalities that would be read from it."""
        for track in tracks:
            for modality in ("face", "scene") if track == "video" else (track,):
                if modality in self.modalities:
                    work.missing[index][modality] = reason

    def _voice_reader(self) -> VoiceReader:
        with self._lock:
            if self._voice is None:
                self._voice = VoiceReader(self._bundle.log_mel, self._load("audio"))
            return self._voice

    def _face_reader(self) -> FaceReader:
        with self._lock:
            if self._faces is None:
                finder = FaceFinder(self._bundle.path(DETECTOR_FILE), self._bundle.faces)
                self._faces = FaceReader(finder, self._load("expression"), self._bundle.fusion)
            return self._faces

    def _scene_reader(self) -> SceneReader:
        with self._lock:
            if self._scene is None:
                self._scene = SceneReader(self._bundle.scene, self._load("scene"), self._bundle.fusion)
            return self._scene
