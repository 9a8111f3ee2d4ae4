"""The pipeline: a conversation in, an `Analysis` out.

Assembled once from a bundle (`Pipeline.from_bundle`); every part gets finished parts. The order of work is: words, and
voice, faces and frames as they are decoded, side by side (`reading`); then the fusion over all, the Llama where the
bundle has one, then the decision. A modality that is absent or broken is masked and named in the result.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

from mechm_runtime.analysis.deadline import CostEstimator, Deadline
from mechm_runtime.analysis.encode import read_conversation
from mechm_runtime.analysis.encoders import Senses
from mechm_runtime.analysis.results import answers
from mechm_runtime.analysis.state import Work
from mechm_runtime.bundle.manifest import MODALITY_PARTS, Bundle, PartFiles
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.bundle.signature import open_signed_bundle
from mechm_runtime.engines.base import EngineConfig, GraphRunner
from mechm_runtime.engines.batching import BatchConfig
from mechm_runtime.engines.output_cache import CacheConfig, OutputCache
from mechm_runtime.engines.part_loader import PartLoader
from mechm_runtime.errors import BundleError, InputError
from mechm_runtime.fusion.decision import decide
from mechm_runtime.fusion.run import run_fusion
from mechm_runtime.llm.rescoring import Adviser, Llm, make_adviser
from mechm_runtime.llm.vllm.config import ServerConfig
from mechm_runtime.media import MediaLimits
from mechm_runtime.media.reader_pool import ReaderPool
from mechm_runtime.session.config import SessionConfig
from mechm_runtime.session.session import Session, SessionParts
from mechm_runtime.system.progress import Progress, StageProgress, no_progress
from mechm_runtime.system.thread_pool import Lanes
from mechm_runtime.types import MODALITIES, Analysis, Conversation

Precision = Literal["fp32", "int8"]


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
        asked_below: float | None = None,
        cache: CacheConfig | None = None,
        batching: BatchConfig | None = None,
        load_part: Callable[[PartFiles], GraphRunner] | None = None,
    ) -> None:
        """Build a pipeline from an opened bundle.

        precisions: part -> precision; the bundle's default for parts that are not named or have None.
        modalities: which to use; the others count as absent. None for those that the bundle's weights learned to read
            (`Bundle.default_modalities`).
        llm: `none` for the fusion alone, `onnx` for the bundle's Llama, `vllm` for a server that serves it,
            `vllm-local` for vLLM in this process; None for `onnx` where the bundle has one.
        server: where that server is; None for the default address.
        asked_below: the Llama is asked about utterances whose likeliest emotion has less than this probability in the
            fusion; None for what the bundle says, 1 for all.
        cache: how much is remembered of what encoders answered, by content; None for nothing, so that nothing of a
            request outlives it.
        batching: how runs of conversations that are analysed at the same time are joined, where that changes nothing
            but rounding (not in int8); None for not at all.
        load_part: what runs a part; None runs the bundle's own graphs. Export compares against torch with it.
        Raises: InputError: unknown modalities, or none; or the server serves something else. BundleError: a precision
            or part that the bundle lacks. LlmUnavailableError: there is no server.
        """
        self.bundle = bundle
        modalities = bundle.default_modalities if modalities is None else modalities
        unknown = sorted(set(modalities) - set(MODALITIES))
        if unknown:
            raise InputError(f"unknown modality {unknown[0]!r}", hint=f"choose from {', '.join(MODALITIES)}")
        self.modalities = tuple(m for m in MODALITIES if m in modalities)
        if not self.modalities:
            raise InputError("no modality to analyse", hint=f"choose from {', '.join(MODALITIES)}")
        if absent := [p for m in self.modalities for p in MODALITY_PARTS[m] if p not in bundle.parts]:
            raise BundleError(f"the bundle has no {absent[0]} part", hint=f"it reads {', '.join(bundle.modalities)}")
        self._engine_config = engine or EngineConfig()
        self.cache = None if cache is None or not cache.remembers else OutputCache(cache)
        """What is remembered of what encoders answered, where that is asked for."""
        loader = PartLoader(bundle, precisions or {}, self._engine_config, cache=self.cache, batching=batching)
        self._load_part = load_part or loader
        self._lanes = Lanes(self._engine_config.lanes if load_part is None else 1)
        self._readers = ReaderPool(limits, self._lanes.n)
        self._session_costs = CostEstimator()
        self.costs = CostEstimator()
        """What stages have cost lately, by tokens (text, llm), seconds of sound (audio), frames (face, scene) and
        utterances (fusion)."""
        self._fusion = self._engine("fusion")
        self._senses = Senses(bundle, self.modalities, self._engine)
        if asked_below is not None and not 0.0 <= asked_below <= 1.0:
            raise InputError(f"asked_below={asked_below} is not a probability", hint="0 never asks the Llama, 1 always")
        if server is not None and llm != "vllm":
            raise InputError("a server is named, and the Llama is not asked there", hint="choose llm vllm too")
        self.llm: Llm = self._chosen_llm(llm)
        if self.llm == "vllm-local" and self._engine_config.engine == "openvino":
            raise InputError(
                "vLLM and OpenVINO have not been tried in one process", hint="run the graphs on onnxruntime"
            )
        self._adviser: Adviser | None = make_adviser(bundle, self.llm, server, self._fusion, self._engine, asked_below)

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
        asked_below: float | None = None,
        cache: CacheConfig | None = None,
        batching: BatchConfig | None = None,
        public_key: Path | None = None,
    ) -> Pipeline:
        """Open a bundle and load it.

        path: its folder, or `package:NAME` for one that is installed as a package; None for `MECHM_BUNDLE`, the bundle
            that `make demo` built, or the only one that is installed.
        precision: of every part; None takes the bundle's default part by part.
        modalities: which to use; the others count as absent. None for those that the bundle's weights learned to read
            (`Bundle.default_modalities`).
        limits: on recordings; None for the defaults.
        llm: `none` for the fusion alone, `onnx` for the bundle's Llama, `vllm` for a server that serves it,
            `vllm-local` for vLLM in this process; None for `onnx` where the bundle has one.
        server: where that server is; None for the default address.
        asked_below: the Llama is asked about utterances whose likeliest emotion has less than this probability in the
            fusion; None for what the bundle says, 1 for all.
        cache: how much is remembered of what encoders answered, by content; None for nothing, so that nothing of a
            request outlives it.
        batching: how runs of conversations that are analysed at the same time are joined, where that changes nothing
            but rounding (not in int8); None for not at all.
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
            asked_below=asked_below,
            cache=cache,
            batching=batching,
        )

    @property
    def bundle_id(self) -> str:
        """The bundle's id, as every analysis carries it."""
        return self.bundle.id

    def analyze(
        self, conversation: Conversation, *, progress: Progress | None = None, deadline_ms: float | None = None
    ) -> Analysis:
        """Analyse one conversation.

        deadline_ms: when the answer should be there. For it the Llama is left out first, then the frames' scenes, then
            the faces, by what they cost lately on this machine; each utterance's `missing` says so. Words and voices
            are always read, so that an answer may come later. What was never measured is tried.
        Raises: MediaError: the conversation's own recording cannot be read (a broken clip of a single utterance is
            named in the result instead). InputError: nothing to analyse, or times past the recording's end.
        """
        report = progress or no_progress
        work = self._perceive(conversation, report, deadline_ms, time.perf_counter())
        if self._adviser is not None and work.asks_llm():
            with work.advised():
                work.scores = self._adviser.advise(
                    conversation.utterances, work.inputs, work.scores, work.missing, _stage(report, "llm")
                )
        return self._conclude(conversation, work)

    async def analyze_async(
        self, conversation: Conversation, *, progress: Progress | None = None, deadline_ms: float | None = None
    ) -> Analysis:
        """The same for an event loop, which is never blocked: graphs run in threads, a server's answer is awaited.

        progress: called in those threads. deadline_ms: as for `analyze`. Cancelled, it ends a server's request; a
        graph that runs comes to its end unheard.
        Raises: as `analyze`.
        """
        report = progress or no_progress
        work = await asyncio.to_thread(self._perceive, conversation, report, deadline_ms, time.perf_counter())
        if self._adviser is not None and work.asks_llm():
            with work.advised():
                work.scores = await self._adviser.advise_async(
                    conversation.utterances, work.inputs, work.scores, work.missing, _stage(report, "llm")
                )
        return await asyncio.to_thread(self._conclude, conversation, work)

    def open_session(self, conversation_id: str = "session", *, config: SessionConfig | None = None) -> Session:
        """A conversation that goes on, utterance by utterance.

        config: how much of it stays in view; None for the defaults.
        """
        return Session(self._session_parts(), conversation_id, config or SessionConfig())

    def restore_session(self, snapshot: bytes) -> Session:
        """A session that goes on where `Session.snapshot` was taken, in this or another process.

        Raises: InputError: the bytes are damaged, or of another bundle.
        """
        return Session.restored(self._session_parts(), snapshot)

    def close(self) -> None:
        """End the threads and the decoding processes that this pipeline keeps; an analysis would start them again.

        They end by themselves when nobody holds the pipeline any more.
        """
        self._lanes.close()
        self._readers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _session_parts(self) -> SessionParts:
        return SessionParts(
            self.bundle, self._senses, self._fusion, self._adviser, self._lanes, self._readers, self._session_costs
        )

    def _work(self, conversation: Conversation, deadline_ms: float | None, started: float) -> Work:
        """An analysis that has begun.

        Raises: InputError: a deadline that is none.
        """
        work = Work.on(conversation.utterances, self.bundle.fusion)
        work.started = started
        work.costs = self.costs
        work.n_tokens = sum(map(self._senses.n_tokens, conversation.utterances))
        if deadline_ms is not None:
            work.deadline = Deadline(deadline_ms, self.costs, self._lanes.n, started)
            work.deadline.expect("text", work.n_tokens)
            work.deadline.expect("fusion", len(conversation.utterances))
            if self._adviser is not None:
                work.deadline.expect("llm", work.n_tokens)
        return work

    def _perceive(
        self, conversation: Conversation, report: Progress, deadline_ms: float | None, started: float
    ) -> Work:
        """All that comes before the Llama: what was said, heard and seen, and the fusion's scores on it."""
        work = self._work(conversation, deadline_ms, started)
        read_conversation(conversation, self._senses, self._readers, self._lanes, work, report)
        if not work.has_evidence:
            reasons = next((m for m in work.missing if m), {})
            detail = f" ({'; '.join(f'{k}: {v}' for k, v in reasons.items())})" if reasons else ""
            raise InputError(
                f"conversation {conversation.id} has nothing to analyse{detail}", hint="give text, a recording or clips"
            )
        with work.timed("fusion", len(conversation.utterances)):
            work.scores = run_fusion(self._fusion, work.inputs, self.bundle.fusion, _stage(report, "fusion"))
        return work

    def _conclude(self, conversation: Conversation, work: Work) -> Analysis:
        """Labels and pairs, with the constants of what scored them."""
        constants = self.bundle.decision
        if work.is_advised and self.bundle.llama is not None:
            constants = self.bundle.llama.decision
        with work.timed("decide"):
            scores = work.scores
            decision = decide(
                scores.emotion_logits, scores.pair_logits, constants, scores.first_cause, work.inputs.text_mask
            )
            found, pairs = answers(conversation.utterances, work.inputs, work.missing, decision, self.modalities)
        return Analysis(conversation.id, found, pairs, work.finish(), self.bundle.id)

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


def _stage(report: Progress, stage: str) -> StageProgress:
    return lambda done, total: report(stage, done, total)
