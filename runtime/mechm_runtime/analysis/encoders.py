"""The encoders that a pipeline has, one a modality, loaded when something is first there for them to read.

Assembled from a bundle; each fills its fields of the inputs that `Work` holds. It decodes no media (`recorded`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from mechm_runtime.analysis.state import Work
from mechm_runtime.bundle.config import FusionWindows
from mechm_runtime.bundle.manifest import Bundle
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.media import SAMPLE_RATE, Segment
from mechm_runtime.modalities.face import FaceReader
from mechm_runtime.modalities.face_detection import FaceFinder
from mechm_runtime.modalities.scene import SceneReader
from mechm_runtime.modalities.text import TextReader
from mechm_runtime.modalities.text_windows import ConversationTokenizer
from mechm_runtime.modalities.voice import VoiceReader
from mechm_runtime.system.lazy import Once
from mechm_runtime.system.progress import StageProgress
from mechm_runtime.types import Utterance

TOKENIZER_FILE = "tokenizer/tokenizer.json"


class Senses:
    """Reads words, voices, faces and frames.

    modalities: which are used. load: what runs a part of the bundle. It may serve several threads.
    """

    def __init__(self, bundle: Bundle, modalities: Sequence[str], load: Callable[[str], GraphRunner]) -> None:
        self.modalities = tuple(modalities)
        self._bundle = bundle
        self._load = load
        self._text: TextReader | None = None
        if "text" in self.modalities:
            self._text = TextReader(ConversationTokenizer(bundle.path(TOKENIZER_FILE), bundle.text), load("text"))
        self._voice_reader = Once(self._make_voice_reader)
        self._face_reader = Once(self._make_face_reader)
        self._scene_reader = Once(self._make_scene_reader)

    @property
    def sizes(self) -> FusionWindows:
        """Of what is read."""
        return self._bundle.fusion

    @property
    def voice(self) -> VoiceReader:
        """The reader of voices."""
        return self._voice_reader()

    @property
    def faces(self) -> FaceReader:
        """The reader of faces."""
        return self._face_reader()

    @property
    def scene(self) -> SceneReader:
        """The reader of frames."""
        return self._scene_reader()

    @property
    def reads_media(self) -> bool:
        """Whether anything but words is read."""
        return self.modalities != ("text",)

    @property
    def n_frames(self) -> int:
        """How many frames of an utterance are read."""
        return self._bundle.fusion.n_frames if {"face", "scene"} & set(self.modalities) else 0

    def read_text(self, utterances: Sequence[Utterance], work: Work, progress: StageProgress | None = None) -> None:
        """Read the words of a conversation; nothing where words are not used.

        progress: called with utterances done and their number.
        """
        if self._text is None:
            return
        with work.timed("text", work.n_tokens):
            self._text.read(utterances, work.inputs, progress)
        for index in (~work.inputs.text_mask).nonzero()[0]:
            work.missing[index]["text"] = "no words known"
        if progress is not None:
            progress(len(utterances), len(utterances))

    def n_tokens(self, utterance: Utterance) -> int:
        """How many tokens the text encoder reads an utterance as; 0 where there are no words, or they are not used."""
        return 0 if self._text is None else self._text.n_tokens(utterance)

    def read_segment(self, index: int, segment: Segment, work: Work) -> None:
        """Read what was decoded of one utterance."""
        for step in self.steps(index, segment, work):
            step()

    def steps(self, index: int, segment: Segment, work: Work) -> list[Callable[[], None]]:
        """What there is to read in what was decoded of one utterance, as calls that may be made side by side."""
        for track, reason in segment.missing.items():
            self.note(work, index, (track,), reason)
        found: list[Callable[[], None]] = []
        if "video" not in segment.missing:
            for modality, read in (("scene", self._read_scene), ("face", self._read_faces)):  # the longest first
                if modality not in self.modalities:
                    continue
                if reason := work.left_out(modality):
                    work.missing[index][modality] = reason
                elif segment.frames is not None and len(segment.frames):
                    found.append(partial(read, index, segment.frames, work))
        if segment.samples is not None and "audio" in self.modalities:
            found.append(partial(self._read_voice, index, segment.samples, work))
        return found

    def _read_voice(self, index: int, samples: npt.NDArray[np.float32], work: Work) -> None:
        reader = self.voice
        with work.timed("audio", len(samples) / SAMPLE_RATE):
            reason = reader.read(index, samples, work.inputs)
        if reason:
            work.missing[index]["audio"] = reason

    def _read_faces(self, index: int, frames: npt.NDArray[np.uint8], work: Work) -> None:
        reader = self.faces
        with work.timed("face", len(frames)):
            reason = reader.read(index, frames, work.inputs)
        if reason:
            work.missing[index]["face"] = reason

    def _read_scene(self, index: int, frames: npt.NDArray[np.uint8], work: Work) -> None:
        reader = self.scene
        with work.timed("scene", len(frames)):
            reader.read(index, frames, work.inputs)

    def note(self, work: Work, index: int, tracks: Sequence[str], reason: str) -> None:
        """Say that a track is missing, in terms of the modalities that would be read from it."""
        for track in tracks:
            for modality in ("face", "scene") if track == "video" else (track,):
                if modality in self.modalities:
                    work.missing[index][modality] = reason

    def _make_voice_reader(self) -> VoiceReader:
        return VoiceReader(self._bundle.log_mel, self._load("audio"))

    def _make_face_reader(self) -> FaceReader:
        finder = FaceFinder(self._load("detector"), self._bundle.faces)
        return FaceReader(finder, self._load("expression"), self._bundle.fusion)

    def _make_scene_reader(self) -> SceneReader:
        return SceneReader(self._bundle.scene, self._load("scene"), self._bundle.fusion)
