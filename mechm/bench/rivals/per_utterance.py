"""The usual implementation: one utterance, frame and face at a time, then the fusion, then a Llama that generates.

The parts and the generator are given. Decoding, features and the decision are MECHM's, so that a rival is not slower
for lack of a good decoder. Text is encoded per conversation: the fusion was trained that way, and encoding each
utterance alone would take as long and score worse. So a rival answers like MECHM in fp32, except that a generated
emotion replaces the fusion's answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mechm_runtime.analysis.decoding import STILL_S
from mechm_runtime.bundle.manifest import TOKENIZER_FILE, Bundle
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.fusion.decision import decide, emotion_logits_of
from mechm_runtime.fusion.inputs import FusionInputs
from mechm_runtime.fusion.run import run_fusion
from mechm_runtime.media import MediaReader, Segment
from mechm_runtime.modalities.face_detection import FaceDetector, face_pixels
from mechm_runtime.modalities.frame_pixels import scene_pixels
from mechm_runtime.modalities.log_mel import log_mel_spectrogram
from mechm_runtime.modalities.text_windows import ConversationTokenizer, pool_batches
from mechm_runtime.system.arrays import softmax
from mechm_runtime.types import EMOTIONS, MODALITIES, Analysis, Conversation, Pair, Utterance, UtteranceAnalysis

PADDED_S = 30.0
"""The length that Whisper's feature extractor pads to."""
GENERATED_TOKENS = 20
"""The number of tokens that MER-MCE and similar systems let the model generate."""
GENERATED_PROBABILITY = 0.94
"""The probability given to a generated emotion, since a word comes without one. The other emotions share the rest."""


class AnswerGenerator(Protocol):
    """A Llama that generates the answer to a question about one utterance."""

    def answer(self, utterances: Sequence[Utterance], position: int, n_tokens: int) -> str | None:
        """The utterance's emotion, None if the answer is not an emotion; always generates `n_tokens`."""


Load = Callable[[], tuple[Mapping[str, GraphRunner], AnswerGenerator | None]]


class PerUtteranceSystem:
    """A system that encodes one utterance at a time.

    kind: the first half of its name. load: returns the parts by name and the generator (None for the fusion alone).
    llama: the Llama's name in tables; empty without one. pads: whether audio is padded to 30 s. modalities: that are
    used; empty for those that the bundle's weights were trained on. n_tokens: generated per answer; the first one
    decides, so fewer give the same answers sooner.
    """

    def __init__(
        self, kind: str, bundle: Bundle, load: Load, *, llama: str, pads: bool, modalities: tuple[str, ...] = ()
    ) -> None:
        self._kind = kind
        self._bundle = bundle
        self._load = load
        self._llama = llama
        self._pads = pads
        self._modalities = modalities or bundle.default_modalities
        self.n_tokens = GENERATED_TOKENS
        self._parts: Mapping[str, GraphRunner] = {}
        self._generator: AnswerGenerator | None = None
        self._tokenizer = ConversationTokenizer(bundle.path(TOKENIZER_FILE), bundle.text)
        self._detector: FaceDetector | None = None

    @property
    def name(self) -> str:
        """Its name in tables."""
        return f"{self._kind}, {f'{self._llama} writes' if self._llama else 'no Llama'}"

    @property
    def llm(self) -> bool:
        """Whether it uses a Llama."""
        return bool(self._llama)

    def without_llama(self) -> PerUtteranceSystem:
        """The same system without its Llama; it shares the loaded parts."""

        def parts() -> tuple[Mapping[str, GraphRunner], AnswerGenerator | None]:
            self.prepare()
            return self._parts, None

        return PerUtteranceSystem(
            self._kind, self._bundle, parts, llama="", pads=self._pads, modalities=self._modalities
        )

    def prepare(self) -> None:
        """Load everything, once."""
        if not self._parts:
            self._parts, self._generator = self._load()

    def analyze(self, conversation: Conversation) -> Analysis:
        """Analyse one conversation."""
        started = time.perf_counter()
        timings: dict[str, float] = {}
        utterances, sizes = conversation.utterances, self._bundle.fusion
        inputs = FusionInputs.absent(utterances, sizes)
        with _timed(timings, "text"):
            self._read_text(utterances, inputs)
        with MediaReader() as reader:
            for index, segment in self._segments(conversation, reader, timings):
                self._read_segment(index, segment, inputs, timings)
        with _timed(timings, "fusion"):
            scores = run_fusion(self._parts["fusion"], inputs, sizes)
        logits = scores.emotion_logits
        if self._generator is not None:
            with _timed(timings, "llm"):
                logits = self._generated(utterances, logits)
        decision = decide(logits, scores.pair_logits, self._bundle.decision, scores.first_cause, inputs.text_mask)
        timings["total"] = 1000 * (time.perf_counter() - started)
        labels = [EMOTIONS[label] if label >= 0 else None for label in decision.labels.tolist()]
        used = np.stack([inputs.text_mask, inputs.audio_mask, inputs.face_mask.any(-1), inputs.scene_mask.any(-1)], 1)
        answers = tuple(
            UtteranceAnalysis(
                u.id,
                u.speaker,
                u.text,
                u.start_s,
                u.end_s,
                labels[i],
                dict(zip(EMOTIONS, decision.probabilities[i].tolist(), strict=True)),
                tuple(name for name, is_used in zip(MODALITIES, used[i], strict=True) if is_used),
            )
            for i, u in enumerate(utterances)
        )
        pairs = tuple(Pair(answers[i].id, str(labels[i]), answers[j].id, p) for i, j, p in decision.pairs)
        return Analysis(conversation.id, answers, pairs, timings, self._bundle.id)

    def _segments(
        self, conversation: Conversation, reader: MediaReader, timings: dict[str, float]
    ) -> Iterator[tuple[int, Segment]]:
        """Decode one utterance at a time: its position and its samples and frames."""
        n_frames = self._bundle.fusion.n_frames if {"face", "scene"} & set(self._modalities) else 0
        for index, u in enumerate(conversation.utterances):
            media = u.media or conversation.media
            if media is None:
                continue
            with _timed(timings, "decode"):
                if u.media is not None:
                    span = (0.0, reader.probe(media).duration_s or STILL_S)
                elif u.start_s is not None and u.end_s is not None:
                    span = (u.start_s, u.end_s)
                else:
                    continue
                segments = reader.read_segments(media, [span], n_frames=n_frames).segments
            for segment in segments:
                yield index, segment

    def _read_text(self, utterances: Sequence[Utterance], inputs: FusionInputs) -> None:
        windows = self._tokenizer(utterances)
        if "text" not in self._modalities or not len(windows.input_ids):
            return
        each = zip(windows.input_ids, windows.attention_mask, strict=True)
        feeds = ({"input_ids": ids[None], "attention_mask": mask[None]} for ids, mask in each)
        states = (self._parts["text"].run(feed)["last_hidden_state"] for feed in feeds)
        inputs.text[:] = pool_batches(states, windows)
        inputs.text_mask[:] = windows.has_text

    def _read_segment(self, index: int, segment: Segment, inputs: FusionInputs, timings: dict[str, float]) -> None:
        if "audio" in self._modalities and segment.samples is not None and segment.samples.any():
            with _timed(timings, "audio"):
                self._read_voice(index, segment.samples, inputs)
        for number, frame in enumerate(() if segment.frames is None else segment.frames):
            if "face" in self._modalities:
                with _timed(timings, "face"):
                    self._read_faces(index, number, frame, inputs)
            if "scene" not in self._modalities:
                continue
            with _timed(timings, "scene"):
                pixels = scene_pixels(frame, self._bundle.scene)[None]
                inputs.scene[index, number] = self._parts["scene"].run({"pixel_values": pixels})["scene_token"][0]
                inputs.scene_mask[index, number] = True

    def _read_voice(self, index: int, samples: npt.NDArray[np.float32], inputs: FusionInputs) -> None:
        config = self._bundle.log_mel
        longest = round(PADDED_S * config.sample_rate)
        kept = samples[:longest]
        n_frames = len(kept) // config.hop_length
        padded = np.pad(kept, (0, longest - len(kept))) if self._pads else kept
        mel = log_mel_spectrogram(padded, config)[None]
        answer = self._parts["audio"].run({"mel": mel, "mel_frames": np.array([n_frames], np.int64)})
        inputs.audio[index] = answer["audio_tokens"][0]
        inputs.audio_mask[index] = True

    def _read_faces(self, index: int, number: int, frame: npt.NDArray[np.uint8], inputs: FusionInputs) -> None:
        if self._detector is None:
            self._detector = FaceDetector(self._parts["detector"], self._bundle.faces)
        n_faces = self._bundle.fusion.max_faces
        for place, face in enumerate(self._detector.detect(frame)[:n_faces], number * n_faces):
            pixels = face_pixels(frame, face.box_px, self._detector.config)[None]
            logits = self._parts["expression"].run({"pixel_values": pixels})["expression_logits"][0]
            height = face.box_px[3] / frame.shape[0]
            inputs.face[index, place] = np.append(softmax(logits), height)
            inputs.face_mask[index, place] = True

    def _generated(self, utterances: Sequence[Utterance], logits: npt.NDArray[np.float32]) -> npt.NDArray[np.floating]:
        """The fusion's logits, replaced where the Llama generated an emotion."""
        assert self._generator is not None  # noqa: S101 (called only with a generator)
        answered: npt.NDArray[np.floating] = logits.astype(np.float64)
        for position, utterance in enumerate(utterances):
            if not (utterance.text or "").strip():
                continue
            word = self._generator.answer(utterances, position, self.n_tokens)
            if word in EMOTIONS:
                rest = (1 - GENERATED_PROBABILITY) / (len(EMOTIONS) - 1)
                probabilities = np.full(len(EMOTIONS), rest)
                probabilities[EMOTIONS.index(word)] = GENERATED_PROBABILITY
                answered[position] = emotion_logits_of(probabilities, self._bundle.decision)
        return answered


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[stage] = timings.get(stage, 0.0) + 1000 * (time.perf_counter() - start)
