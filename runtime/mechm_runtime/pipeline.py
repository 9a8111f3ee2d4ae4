"""The pipeline: a conversation in, an `Analysis` out.

Built once from a bundle (`Pipeline.from_bundle`). An analysis has these stages: text, voices, faces and frames are
encoded as they are decoded, side by side (`analysis.encode`); the fusion scores all utterances; the Llama, where the
bundle has one, rescores them; the decision makes labels and pairs. A modality that is absent or broken is masked and
named in the result.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self, TypedDict, Unpack

from mechm_runtime.analysis.deadline import CostEstimator, Deadline, NoDeadline
from mechm_runtime.analysis.encode import encode_conversation
from mechm_runtime.analysis.encoders import ModalityEncoders
from mechm_runtime.analysis.results import build_results
from mechm_runtime.analysis.state import AnalysisState
from mechm_runtime.bundle.manifest import Bundle, PartFiles
from mechm_runtime.bundle.modality import MODALITY_PARTS
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.bundle.signature import open_signed_bundle
from mechm_runtime.bundle.terms import terms_of_use
from mechm_runtime.engines.base import EngineConfig, GraphRunner
from mechm_runtime.engines.batching import BatchConfig
from mechm_runtime.engines.output_cache import CacheConfig, OutputCache
from mechm_runtime.engines.part_loader import PartLoader
from mechm_runtime.engines.run_queue import RunQueue
from mechm_runtime.errors import BundleError, InputError
from mechm_runtime.fusion.decision import decide
from mechm_runtime.fusion.run import FusionScores, run_fusion
from mechm_runtime.llm.rescoring import Llm, LlmRescorer, make_rescorer
from mechm_runtime.llm.vllm.config import ServerConfig
from mechm_runtime.media import MediaLimits
from mechm_runtime.media.reader_pool import ReaderPool
from mechm_runtime.session.config import SessionConfig
from mechm_runtime.session.session import Session, SessionParts
from mechm_runtime.system.progress import Progress, StageProgress, no_progress
from mechm_runtime.system.thread_pool import ThreadPool
from mechm_runtime.types import MODALITIES, Analysis, Conversation

Precision = Literal["fp32", "int8"]

MAX_CALLS = 64
"""Calls of `analyze_async` that are under way at once in threads: they mostly wait, for the encoders' lanes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig:
    """Options of a pipeline.

    precision: of every part; None for the bundle's default part by part.
    precisions: part -> precision, for parts that differ from `precision`; None counts as not named.
    engine: how graphs are run; None for the defaults.
    modalities: those to use; the others count as absent. None for those that the bundle's weights learned from
        (`Bundle.default_modalities`).
    limits: on recordings; None for the defaults.
    llm: `none` for the fusion alone, `onnx` for the bundle's Llama, `vllm` for a server that serves it, `vllm-local`
        for vLLM in this process; None for `onnx` where the bundle has a Llama.
    server: address of the server and limits on requests; None for the default address.
    asked_below: the Llama is asked about utterances whose likeliest emotion has less than this probability in the
        fusion; None for the bundle's value, 1 for all.
    cache: bounds of a cache of encoder outputs, by content; None for no cache, so that nothing of a request outlives
        it.
    batching: how runs of conversations that are analysed at the same time are joined, where that changes nothing but
        rounding (not in int8); None joins none.

    Raises: InputError: a value out of its range, or options that contradict each other.
    """

    precision: Precision | None = None
    precisions: Mapping[str, str | None] | None = None
    engine: EngineConfig | None = None
    modalities: Sequence[str] | None = None
    limits: MediaLimits | None = None
    llm: Llm | None = None
    server: ServerConfig | None = None
    asked_below: float | None = None
    cache: CacheConfig | None = None
    batching: BatchConfig | None = None

    def __post_init__(self) -> None:
        if self.modalities is not None:
            check_modalities(self.modalities)
        if self.asked_below is not None and not 0.0 <= self.asked_below <= 1.0:
            raise InputError(
                f"asked_below={self.asked_below} is not a probability", hint="0 never asks the Llama, 1 always"
            )
        if self.server is not None and self.llm != "vllm":
            raise InputError("a server is named, and the Llama is not asked there", hint="choose llm vllm too")
        if self.llm == "vllm-local" and self.engine is not None and not self.engine.spec.runs_beside_vllm:
            raise InputError(
                f"vLLM and {self.engine.engine} have not been tried in one process",
                hint="run the graphs on onnxruntime",
            )


class PipelineOptions(TypedDict, total=False):
    """The fields of `PipelineConfig` as keyword arguments."""

    precision: Precision | None
    precisions: Mapping[str, str | None] | None
    engine: EngineConfig | None
    modalities: Sequence[str] | None
    limits: MediaLimits | None
    llm: Llm | None
    server: ServerConfig | None
    asked_below: float | None
    cache: CacheConfig | None
    batching: BatchConfig | None


class Pipeline:
    """Analyses conversations with one bundle. Thread-safe: one pipeline may serve several threads.

    An encoder is loaded when a conversation first needs it: text alone never loads the encoders of voice and picture.
    Where the bundle has a Llama, it is asked about the words, and its answers are combined with the fusion's scores.
    Where a server runs the Llama and does not answer, the result is the fusion's alone, and `missing["llm"]` says why.
    """

    def __init__(
        self,
        bundle: Bundle,
        config: PipelineConfig | None = None,
        *,
        load_part: Callable[[PartFiles], GraphRunner] | None = None,
        **options: Unpack[PipelineOptions],
    ) -> None:
        """Build a pipeline from an opened bundle.

        config: None for the defaults. options: fields of `PipelineConfig`, in place of the config's.
        load_part: gives the engine of a part; None runs the bundle's own graphs. Export compares against torch with it.
        Raises: InputError: options that are invalid, alone or for this bundle; or the server serves something else.
        BundleError: a precision or part that the bundle lacks. LlmUnavailableError: what is at the server's address is
        no model server; one that is down is asked again by later analyses.
        """
        config = replace(config or PipelineConfig(), **options)
        self.bundle = bundle
        self.config = config
        self.modalities = _chosen_modalities(bundle, config.modalities)
        self.cache = None if config.cache is None or not config.cache.remembers else OutputCache(config.cache)
        """The cache of encoder outputs, where one was asked for."""
        engine = config.engine or EngineConfig()
        named = {name: precision for name, precision in (config.precisions or {}).items() if precision is not None}
        self._run_queue = RunQueue(engine.lanes)
        loader = PartLoader(
            bundle,
            {**dict.fromkeys(bundle.parts, config.precision), **named},
            engine,
            cache=self.cache,
            batching=config.batching,
            queue=self._run_queue,
        )
        self._load_part = load_part or loader
        self._lanes = ThreadPool(engine.lanes if load_part is None else 1)
        self._callers = ThreadPool(MAX_CALLS)
        self._readers = ReaderPool(config.limits, self._lanes.n)
        self.costs = CostEstimator()
        """Estimates of the stages' cost, by tokens (text, llm), seconds of sound (audio), frames (face, scene) and
        utterances (fusion)."""
        self._session_costs = CostEstimator()
        self._fusion = self._load("fusion")
        self._encoders = ModalityEncoders(bundle, self.modalities, self._load)
        self.llm: Llm = _chosen_llm(bundle, self.modalities, config.llm)
        self._rescorer: LlmRescorer | None = make_rescorer(
            bundle, self.llm, config.server, self._fusion, self._load, config.asked_below
        )

    @classmethod
    def from_bundle(
        cls,
        path: Path | str | None = None,
        config: PipelineConfig | None = None,
        *,
        public_key: Path | None = None,
        **options: Unpack[PipelineOptions],
    ) -> Pipeline:
        """Open a bundle and build a pipeline from it.

        path: its folder, or `package:NAME` for one that is installed as a package; None for `MECHM_BUNDLE`, the bundle
            in the cache folder, or the only one that is installed.
        config: None for the defaults. options: fields of `PipelineConfig`, in place of the config's.
        public_key: PEM file of an Ed25519 key that must have signed the bundle; None requires no signature.
        Raises: InputError, BundleError, ProviderError, MissingExtraError, LlmUnavailableError.
        """
        config = replace(config or PipelineConfig(), **options)
        bundle = open_bundle(path) if public_key is None else open_signed_bundle(path, public_key)
        return cls(bundle, config)

    @property
    def bundle_id(self) -> str:
        """The bundle's id, as every analysis carries it."""
        return self.bundle.id

    @property
    def terms_of_use(self) -> str:
        """Restrictions that the training data of the bundle's weights impose, as one sentence; empty without any."""
        return terms_of_use(self.bundle.manifest)

    def analyze(
        self, conversation: Conversation, *, progress: Progress | None = None, deadline_ms: float | None = None
    ) -> Analysis:
        """Analyse one conversation.

        deadline_ms: time limit in milliseconds. To meet it the Llama is left out first, then scenes, then faces, by
            their estimated cost on this machine; a stage that was never measured is tried. Words and voices are encoded
            until the time is over. `missing` of each utterance says what was left out; where nothing of it was read,
            its emotion is None. The result comes at most one run of a graph late, which `late_ms` says.
        Raises: MediaError: the conversation's own recording cannot be read (a broken clip of a single utterance is
            named in the result instead). InputError: nothing to analyse, or times past the recording's end.
        """
        report = progress or no_progress
        state, scores = self._encode_and_score(conversation, report, self._limit(deadline_ms), time.perf_counter())
        if self._rescorer is not None and state.admits_llm():
            with state.llm_stage():
                scores = self._rescorer.rescore(
                    conversation.utterances, state.inputs, scores, state.missing, _stage(report, "llm")
                )
        return self._decide(conversation, state, scores)

    async def analyze_async(
        self, conversation: Conversation, *, progress: Progress | None = None, deadline_ms: float | None = None
    ) -> Analysis:
        """`analyze` for an event loop, which is never blocked: graphs run in threads, a server's answer is awaited.

        progress: called in those threads. deadline_ms: as for `analyze`. When cancelled, it ends a server's request; a
        graph that is running finishes, its result is dropped, and no other begins.
        Raises: as `analyze`.
        """
        report = progress or no_progress
        started, limit = time.perf_counter(), self._limit(deadline_ms)
        try:
            state, scores = await self._callers.run_async(self._encode_and_score, conversation, report, limit, started)
        except asyncio.CancelledError:
            limit.cancel()
            raise
        if self._rescorer is not None and state.admits_llm():
            with state.llm_stage():
                scores = await self._rescorer.rescore_async(
                    conversation.utterances,
                    state.inputs,
                    scores,
                    state.missing,
                    self._callers,
                    _stage(report, "llm"),
                )
        return await self._callers.run_async(self._decide, conversation, state, scores)

    def check_llm(self) -> None:
        """Check that the Llama's server answers now, for callers to whom the fusion's answers are of no use.

        Does nothing where no server is asked.
        Raises: LlmUnavailableError: it does not answer. InputError: it serves another model, or refuses the key.
        """
        if self._rescorer is not None:
            self._rescorer.check()

    def open_session(self, conversation_id: str = "session", *, config: SessionConfig | None = None) -> Session:
        """Open a session: a conversation that goes on, utterance by utterance.

        config: bounds of the session; None for the defaults.
        """
        return Session(self._session_parts(), conversation_id, config or SessionConfig())

    def restore_session(self, snapshot: bytes) -> Session:
        """Continue a session from where `Session.snapshot` was taken, in this or another process.

        Raises: InputError: the bytes are damaged, or of another bundle.
        """
        return Session.restored(self._session_parts(), snapshot)

    def close(self) -> None:
        """End the threads and the decoding processes of this pipeline; an analysis would start them again.

        They end by themselves when nobody holds the pipeline any more.
        """
        self._callers.close()
        self._lanes.close()
        self._readers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _session_parts(self) -> SessionParts:
        return SessionParts(
            self.bundle,
            self._encoders,
            self._fusion,
            self._rescorer,
            self._lanes,
            self._callers,
            self._readers,
            self._session_costs,
        )

    def _limit(self, deadline_ms: float | None) -> Deadline | NoDeadline:
        """The limit of a request that starts now.

        Raises: InputError: a deadline that is not above 0.
        """
        return NoDeadline() if deadline_ms is None else Deadline(deadline_ms, self.costs, self._lanes.n)

    def _begin(self, conversation: Conversation, limit: Deadline | NoDeadline, started: float) -> AnalysisState:
        """The state of an analysis that was started at a time of `time.perf_counter`."""
        windows = self._encoders.tokenize(conversation.utterances)
        n_tokens = 0 if windows is None else int(windows.n_tokens.sum())
        if isinstance(limit, Deadline):
            limit.expect_work(
                self.modalities,
                n_tokens=n_tokens,
                n_llm_tokens=None if self._rescorer is None else n_tokens,
                n_utterances=len(conversation.utterances),
            )
        return AnalysisState(
            conversation.utterances,
            self.bundle.fusion,
            self.modalities,
            n_tokens=n_tokens,
            windows=windows,
            costs=self.costs,
            limit=limit,
            started=started,
        )

    def _encode_and_score(
        self, conversation: Conversation, report: Progress, limit: Deadline | NoDeadline, started: float
    ) -> tuple[AnalysisState, FusionScores]:
        """Everything before the Llama: the encoders' outputs, and the fusion's scores of them."""
        state = self._begin(conversation, limit, started)
        encode_conversation(conversation, self._encoders, self._readers, self._lanes, state, report)
        if state.is_empty:
            reasons = next((m for m in state.missing if m), {})
            detail = f" ({'; '.join(f'{k}: {v}' for k, v in reasons.items())})" if reasons else ""
            raise InputError(
                f"conversation {conversation.id} has nothing to analyse{detail}", hint="give text, a recording or clips"
            )
        with state.timed("fusion", len(conversation.utterances)) as watch:
            unread = state.is_unread()
            watch.done = float((~unread).sum())
            scores = run_fusion(self._fusion, state.inputs, self.bundle.fusion, _stage(report, "fusion"), unread)
        return state, scores

    def _decide(self, conversation: Conversation, state: AnalysisState, scores: FusionScores) -> Analysis:
        """Labels and pairs, with the calibration of the scores: the Llama's where it rescored, else the fusion's."""
        constants = self.bundle.decision
        if state.is_rescored and self.bundle.llama is not None:
            constants = self.bundle.llama.decision
        with state.timed("decide", len(conversation.utterances)):
            decision = decide(
                scores.emotion_logits, scores.pair_logits, constants, scores.first_cause, state.inputs.text_mask
            ).without(state.is_unread())
            found, pairs = build_results(
                conversation.utterances, state.inputs, state.missing, decision, self.modalities
            )
        timings_ms = state.finish()
        return Analysis(
            conversation.id, found, pairs, timings_ms, self.bundle.id, conversation.notes, late_ms=state.late_ms
        )

    def _load(self, part: str) -> GraphRunner:
        """The engine of a part.

        Raises: BundleError: the bundle lacks it.
        """
        if part not in self.bundle.parts:
            raise BundleError(
                f"the bundle has no {part} part",
                hint="use a bundle with all parts, as the one that this was split from",
            )
        return self._load_part(self.bundle.parts[part])


def check_modalities(modalities: Sequence[str]) -> None:
    """Refuse names of modalities that do not exist, and an empty choice.

    Raises: InputError.
    """
    if unknown := sorted(set(modalities) - set(MODALITIES)):
        raise InputError(f"unknown modality {unknown[0]!r}", hint=f"choose from {', '.join(MODALITIES)}")
    if not modalities:
        raise InputError("no modality to analyse", hint=f"choose from {', '.join(MODALITIES)}")


def _chosen_modalities(bundle: Bundle, asked: Sequence[str] | None) -> tuple[str, ...]:
    """The modalities to use, in the order of `MODALITIES`.

    Raises: InputError: there is none. BundleError: the bundle lacks a part of one.
    """
    chosen = bundle.default_modalities if asked is None else asked
    check_modalities(chosen)
    modalities = tuple(m for m in MODALITIES if m in chosen)
    if absent := [p for m in modalities for p in MODALITY_PARTS[m] if p not in bundle.parts]:
        raise BundleError(f"the bundle has no {absent[0]} part", hint=f"it reads {', '.join(bundle.modalities)}")
    return modalities


def _chosen_llm(bundle: Bundle, modalities: Sequence[str], asked: Llm | None) -> Llm:
    """The Llama to ask; `none` where text is not used, since it is asked about words.

    Raises: InputError: one was asked for, and text is not used.
    """
    if "text" not in modalities:
        if asked not in (None, "none"):
            raise InputError("the Llama reads words, and text is not to be used", hint="add text, or choose llm none")
        return "none"
    if asked is None:
        return "none" if bundle.llama is None else "onnx"
    return asked


def _stage(report: Progress, stage: str) -> StageProgress:
    return lambda done, total: report(stage, done, total)
