"""The pipeline: a conversation in, an `Analysis` out.

Assembled once from a bundle (`Pipeline.from_bundle`); every part gets finished parts. The order of work is: the text,
while the decoding process starts; then voice, frames and faces utterance by utterance as they are decoded; then the
fusion over all, the Llama where the bundle has one, then the decision. A modality that is absent or broken is masked
and named in the result.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from mechm_runtime.advice import Adviser, Llm, make_adviser
from mechm_runtime.bundle import MODALITY_PARTS, Bundle, PartFiles, open_bundle
from mechm_runtime.decision import Decision, decide
from mechm_runtime.engine import EngineConfig, GraphRunner, load_engine
from mechm_runtime.errors import BundleError, InputError, LlmUnavailableError, MediaError
from mechm_runtime.features.faces import FaceFinder
from mechm_runtime.fusion import FusionInputs, FusionScores, run_fusion
from mechm_runtime.media import MediaLimits, MediaReader, Segment
from mechm_runtime.perception import FaceReader, SceneReader, TextReader, VoiceReader
from mechm_runtime.serving.settings import ServerConfig
from mechm_runtime.signature import open_signed_bundle
from mechm_runtime.text import ConversationTokenizer
from mechm_runtime.types import EMOTIONS, MODALITIES, Analysis, Conversation, Pair, Utterance, UtteranceAnalysis

Precision = Literal["fp32", "int8"]
Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the utterances done and their number."""

TOKENIZER_FILE = "tokenizer/tokenizer.json"
DETECTOR_FILE = "faces/detector.onnx"
STILL_S = 1.0
"""How long a clip is taken to be that has no duration: a picture."""
PAST_END_S = 0.5
"""How far an utterance's times may run past its recording; clocks and encoders round."""


@dataclass(slots=True)
class _Work:
    """One conversation on its way: what is known so far, why things are missing, and where time went.

    scores: the fusion's, then with the Llama's weighed in. is_advised: whether they are.
    """

    inputs: FusionInputs
    missing: list[dict[str, str]]
    scores: FusionScores = field(init=False)
    is_advised: bool = False
    timings_ms: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings_ms[stage] = self.timings_ms.get(stage, 0.0) + 1000 * (time.perf_counter() - start)

    @contextmanager
    def advised(self) -> Iterator[None]:
        """Around the Llama's turn: where it does not answer, the scores stay the fusion's, and the result says why."""
        try:
            with self.timed("llm"):
                yield
            self.is_advised = True
        except LlmUnavailableError as error:
            for index in self.inputs.text_mask.nonzero()[0]:
                self.missing[index]["llm"] = str(error)


class Pipeline:
    """Analyses conversations with one bundle. One pipeline may serve several threads.

    Engines of modalities that no conversation has used yet are not loaded: text alone never pays for the encoders of
    voice and picture. Where the bundle has a Llama, it is asked about what was said and weighed against the fusion.
    Where a server runs the Llama and does not answer, the result is the fusion's alone, and `missing["llm"]` says why.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        precisions: Mapping[str, str | None] | None = None,
        engine: EngineConfig | None = None,
        modalities: Sequence[str] | None = None,
        limits: MediaLimits | None = None,
        llm: Llm | None = None,
        server: ServerConfig | None = None,
        load_part: Callable[[PartFiles], GraphRunner] | None = None,
    ) -> None:
        """Build a pipeline from an opened bundle.

        precisions: part -> precision; the bundle's default for parts that are not named or have None.
        modalities: which to use; the others count as absent. None for all that the bundle has parts for.
        llm: `none` for the fusion alone, `onnx` for the bundle's Llama, `vllm` for a server that serves it,
            `vllm-local` for vLLM in this process; None for `onnx` where the bundle has one.
        server: where that server is; None for the default address.
        load_part: what runs a part; None runs the bundle's own graphs. Export compares against torch with it.
        Raises: InputError: unknown modalities, or none; or the server serves something else. BundleError: a precision
            or part that the bundle lacks. LlmUnavailableError: there is no server.
        """
        self.bundle = bundle
        modalities = bundle.modalities if modalities is None else modalities
        unknown = sorted(set(modalities) - set(MODALITIES))
        if unknown:
            raise InputError(f"unknown modality {unknown[0]!r}", hint=f"choose from {', '.join(MODALITIES)}")
        self.modalities = tuple(m for m in MODALITIES if m in modalities)
        if not self.modalities:
            raise InputError("no modality to analyse", hint=f"choose from {', '.join(MODALITIES)}")
        if absent := [MODALITY_PARTS[m] for m in self.modalities if m not in bundle.modalities]:
            raise BundleError(f"the bundle has no {absent[0]} part", hint=f"it reads {', '.join(bundle.modalities)}")
        self._precisions = {name: precision for name, precision in (precisions or {}).items() if precision is not None}
        self._engine_config = engine or EngineConfig()
        self._check_precisions()
        self._limits = limits
        self._load_part = load_part or self._load_engine
        self._lock = threading.Lock()
        self._fusion = self._engine("fusion")
        self._text: TextReader | None = None
        if "text" in self.modalities:
            tokenizer = ConversationTokenizer(bundle.path(TOKENIZER_FILE), bundle.text)
            self._text = TextReader(tokenizer, self._engine("text"))
        if server is not None and llm != "vllm":
            raise InputError("a server is named, and the Llama is not asked there", hint="choose llm vllm too")
        self.llm: Llm = self._chosen_llm(llm)
        if self.llm == "vllm-local" and self._engine_config.engine == "openvino":
            raise InputError(
                "vLLM's torch and OpenVINO do not share a process safely", hint="run the graphs on onnxruntime"
            )
        self._adviser: Adviser | None = make_adviser(bundle, self.llm, server, self._fusion, self._engine)
        self._voice: VoiceReader | None = None
        self._faces: FaceReader | None = None
        self._scene: SceneReader | None = None

    @classmethod
    def from_bundle(
        cls,
        path: Path | str | None = None,
        *,
        precision: Precision | None = None,
        engine: EngineConfig | None = None,
        modalities: Sequence[str] | None = None,
        limits: MediaLimits | None = None,
        llm: Llm | None = None,
        server: ServerConfig | None = None,
        public_key: Path | None = None,
    ) -> Pipeline:
        """Open a bundle and load it.

        path: its folder, or `package:NAME` for one that is installed as a package; None for `MECHM_BUNDLE`, the bundle
            that `make demo` built, or the only one that is installed.
        precision: of every part; None takes the bundle's default part by part.
        modalities: which to use; the others count as absent. None for all that the bundle has parts for.
        limits: on recordings; None for the defaults.
        llm: `none` for the fusion alone, `onnx` for the bundle's Llama, `vllm` for a server that serves it,
            `vllm-local` for vLLM in this process; None for `onnx` where the bundle has one.
        server: where that server is; None for the default address.
        public_key: PEM file of an Ed25519 key that must have signed the bundle; None asks for no signature.
        Raises: BundleError, ProviderError, MissingExtraError, LlmUnavailableError.
        """
        bundle = open_bundle(path) if public_key is None else open_signed_bundle(path, public_key)
        precisions = dict.fromkeys(bundle.parts, precision)
        return cls(
            bundle,
            precisions=precisions,
            engine=engine,
            modalities=modalities,
            limits=limits,
            llm=llm,
            server=server,
        )

    @property
    def bundle_id(self) -> str:
        """The bundle's id, as every analysis carries it."""
        return self.bundle.id

    def analyze(self, conversation: Conversation, *, progress: Progress | None = None) -> Analysis:
        """Analyse one conversation.

        Raises: MediaError: the conversation's own recording cannot be read (a broken clip of a single utterance is
            named in the result instead). InputError: nothing to analyse, or times past the recording's end.
        """
        report = progress or _silent
        work = self._perceive(conversation, report)
        if self._adviser is not None and work.inputs.text_mask.any():
            with work.advised():
                work.scores = self._adviser.advise(
                    conversation.utterances, work.inputs, work.scores, work.missing, _stage(report, "llm")
                )
        return self._conclude(conversation, work)

    async def analyze_async(self, conversation: Conversation, *, progress: Progress | None = None) -> Analysis:
        """The same for an event loop, which is never blocked: graphs run in threads, a server's answer is awaited.

        progress: called in those threads. Cancelled, it ends a server's request; a graph that runs comes to its end
        unheard.
        Raises: as `analyze`.
        """
        report = progress or _silent
        work = await asyncio.to_thread(self._perceive, conversation, report)
        if self._adviser is not None and work.inputs.text_mask.any():
            with work.advised():
                work.scores = await self._adviser.advise_async(
                    conversation.utterances, work.inputs, work.scores, work.missing, _stage(report, "llm")
                )
        return await asyncio.to_thread(self._conclude, conversation, work)

    def _perceive(self, conversation: Conversation, report: Progress) -> _Work:
        """All that comes before the Llama: what was said, heard and seen, and the fusion's scores on it."""
        utterances = conversation.utterances
        work = _Work(FusionInputs.absent(utterances, self.bundle.fusion), [{} for _ in utterances])
        recorded = conversation.media is not None or any(u.media is not None for u in utterances)
        # Entering the reader starts its process, which gets ready while the text is read.
        with MediaReader(self._limits) if recorded and self.modalities != ("text",) else nullcontext() as reader:
            if self._text is not None:
                self._read_text(self._text, utterances, work, report)
            if reader is not None:
                self._read_media(conversation, reader, work, report)
        if not self._has_evidence(work.inputs):
            reasons = next((m for m in work.missing if m), {})
            detail = f" ({'; '.join(f'{k}: {v}' for k, v in reasons.items())})" if reasons else ""
            raise InputError(
                f"conversation {conversation.id} has nothing to analyse{detail}", hint="give text, a recording or clips"
            )
        with work.timed("fusion"):
            work.scores = run_fusion(self._fusion, work.inputs, self.bundle.fusion, _stage(report, "fusion"))
        return work

    def _conclude(self, conversation: Conversation, work: _Work) -> Analysis:
        """Labels and pairs, with the constants of what scored them."""
        constants = self.bundle.decision
        if work.is_advised and self.bundle.llama is not None:
            constants = self.bundle.llama.decision
        with work.timed("decide"):
            scores = work.scores
            decision = decide(
                scores.emotion_logits, scores.pair_logits, constants, scores.first_cause, work.inputs.text_mask
            )
        work.timings_ms["total"] = 1000 * (time.perf_counter() - work.started)
        return self._answer(conversation, work, decision)

    @staticmethod
    def _read_text(text: TextReader, utterances: Sequence[Utterance], work: _Work, report: Progress) -> None:
        with work.timed("text"):
            text.read(utterances, work.inputs, _stage(report, "text"))
        for index in (~work.inputs.text_mask).nonzero()[0]:
            work.missing[index]["text"] = "no words known"
        report("text", len(utterances), len(utterances))

    def _read_media(self, conversation: Conversation, reader: MediaReader, work: _Work, report: Progress) -> None:
        wanted = [m for m in self.modalities if m != "text"]
        n_frames = self.bundle.fusion.n_frames if {"face", "scene"} & set(wanted) else 0
        n = len(conversation.utterances)
        for done, (index, segment) in enumerate(self._segments(conversation, reader, n_frames, work), 1):
            self._read_segment(index, segment, work)
            report("media", done, n)

    def _segments(
        self, conversation: Conversation, reader: MediaReader, n_frames: int, work: _Work
    ) -> Iterator[tuple[int, Segment]]:
        """Decoded segments by utterance position; time spent decoding is counted, that of the consumer is not."""
        if conversation.media is not None:
            yield from self._recorded(conversation.utterances, conversation.media, reader, n_frames, work)
        for index, u in enumerate(conversation.utterances):
            if u.media is not None:
                yield from self._clipped(index, u.media, reader, n_frames, work)
            elif conversation.media is None:
                self._note(work, index, ("audio", "video"), "no clip")

    def _recorded(
        self, utterances: Sequence[Utterance], media: Path, reader: MediaReader, n_frames: int, work: _Work
    ) -> Iterator[tuple[int, Segment]]:
        """Segments of the conversation's recording, of the utterances that have no clip of their own.

        Raises: MediaError: it cannot be read. InputError: a time is past its end.
        """
        with work.timed("decode"):
            duration_s = reader.probe(media).duration_s
        spans, owners = [], []
        for index, u in enumerate(utterances):
            if u.media is not None:
                continue
            if u.start_s is None or u.end_s is None:
                self._note(work, index, ("audio", "video"), "the transcript gives no times")
                continue
            if duration_s is not None and u.end_s > duration_s + PAST_END_S:
                raise InputError(
                    f"utterance {u.id} ends at {u.end_s:.2f} s, the recording at {duration_s:.2f} s",
                    hint="is this the transcript of another recording?",
                )
            spans.append((u.start_s, u.end_s))
            owners.append(index)
        for position, segment in self._timed(reader.iter_segments(media, spans, n_frames=n_frames), work):
            yield owners[position], segment

    def _clipped(
        self, index: int, media: Path, reader: MediaReader, n_frames: int, work: _Work
    ) -> Iterator[tuple[int, Segment]]:
        """The segment of an utterance's own clip, or nothing but a note where it cannot be read."""
        try:
            with work.timed("decode"):
                duration_s = reader.probe(media).duration_s
            whole = [(0.0, duration_s or STILL_S)]
            for _, segment in self._timed(reader.iter_segments(media, whole, n_frames=n_frames), work):
                yield index, segment
        except MediaError as error:
            self._note(work, index, ("audio", "video"), str(error))

    @staticmethod
    def _timed(segments: Iterator[tuple[int, Segment]], work: _Work) -> Iterator[tuple[int, Segment]]:
        while True:
            with work.timed("decode"):
                item = next(segments, None)
            if item is None:
                return
            yield item

    def _read_segment(self, index: int, segment: Segment, work: _Work) -> None:
        for track, reason in segment.missing.items():
            self._note(work, index, (track,), reason)
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

    def _note(self, work: _Work, index: int, tracks: Sequence[str], reason: str) -> None:
        """Say that a track is missing, in terms of the modalities that would be read from it."""
        for track in tracks:
            for modality in ("face", "scene") if track == "video" else (track,):
                if modality in self.modalities:
                    work.missing[index][modality] = reason

    @staticmethod
    def _has_evidence(inputs: FusionInputs) -> bool:
        masks = (inputs.text_mask, inputs.audio_mask, inputs.face_mask, inputs.scene_mask)
        return any(mask.any() for mask in masks)

    def _answer(self, conversation: Conversation, work: _Work, decision: Decision) -> Analysis:
        inputs = work.inputs
        used = {
            "text": inputs.text_mask,
            "audio": inputs.audio_mask,
            "face": np.asarray(inputs.face_mask.any(-1)),
            "scene": np.asarray(inputs.scene_mask.any(-1)),
        }
        labels = [None if label < 0 else EMOTIONS[label] for label in decision.labels.tolist()]
        answers = tuple(
            UtteranceAnalysis(
                id=u.id,
                speaker=u.speaker,
                text=u.text,
                start_s=u.start_s,
                end_s=u.end_s,
                emotion=labels[i],
                probabilities=dict(zip(EMOTIONS, decision.probabilities[i].tolist(), strict=True)),
                modalities=tuple(m for m in self.modalities if used[m][i]),
                missing=work.missing[i],
            )
            for i, u in enumerate(conversation.utterances)
        )
        pairs = tuple(
            Pair(answers[i].id, str(labels[i]), answers[j].id, probability) for i, j, probability in decision.pairs
        )
        timings = {stage: round(value, 3) for stage, value in work.timings_ms.items()}
        return Analysis(conversation.id, answers, pairs, timings, self.bundle.id)

    def _chosen_llm(self, asked: Llm | None) -> Llm:
        """Which Llama answers; without words there is nothing to ask it.

        Raises: InputError: it was asked for, without words.
        """
        if "text" not in self.modalities:
            if asked not in (None, "none"):
                raise InputError(
                    "the Llama reads words, and text is not to be used", hint="add text, or choose llm none"
                )
            return "none"
        if asked is None:
            return "none" if self.bundle.llama is None else "onnx"
        return asked

    def _engine(self, part: str) -> GraphRunner:
        if part not in self.bundle.parts:
            raise BundleError(f"the bundle has no {part} part", hint="export it with the parts this input needs")
        return self._load_part(self.bundle.parts[part])

    def _check_precisions(self) -> None:
        """Refuse now what would fail only when the first recording comes.

        Raises: BundleError: a part or a precision of it that was asked for is not there. InputError: the engine does
            not run it.
        """
        for name, precision in self._precisions.items():
            if precision == "int8" and self._engine_config.engine != "onnxruntime":
                raise InputError(
                    f"the int8 files are onnxruntime's own, and {self._engine_config.engine} is to run them",
                    hint="leave the precision out, or the engine",
                )
            if self._engine_config.engine.startswith("tensorrt"):
                raise InputError(
                    f"an engine of {self._engine_config.engine} has the precision it was built in",
                    hint="leave the precision out; mechm export engines --precision builds in another",
                )
            files = self.bundle.parts[name].files if name in self.bundle.parts else {}
            if precision not in files:
                raise BundleError(
                    f"the bundle has no {precision} file of its {name} part",
                    hint=f"it has {', '.join(files) or 'no such part'}",
                )

    def _load_engine(self, part: PartFiles) -> GraphRunner:
        name = self._engine_config.engine
        if name in ("tensorrt", "tensorrt-rtx"):
            from mechm_runtime.tensorrt.engine import load_part

            return load_part(self.bundle, part.name, name)
        precision = self._precisions.get(part.name, part.precision_on(name))
        return load_engine(self.bundle.path(part.files[precision]), self._engine_config)

    def _voice_reader(self) -> VoiceReader:
        with self._lock:
            if self._voice is None:
                self._voice = VoiceReader(self.bundle.log_mel, self._engine("audio"))
            return self._voice

    def _face_reader(self) -> FaceReader:
        with self._lock:
            if self._faces is None:
                finder = FaceFinder(self.bundle.path(DETECTOR_FILE), self.bundle.faces)
                self._faces = FaceReader(finder, self._engine("expression"), self.bundle.fusion)
            return self._faces

    def _scene_reader(self) -> SceneReader:
        with self._lock:
            if self._scene is None:
                self._scene = SceneReader(self.bundle.scene, self._engine("scene"), self.bundle.fusion)
            return self._scene


def _silent(_stage: str, _done: int, _total: int) -> None:
    return None


def _stage(report: Progress, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: report(stage, done, total)
