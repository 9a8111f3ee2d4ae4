"""Rescoring with the Llama: it is asked about the utterances that the fusion scored, and both scores are combined.

`make_rescorer` chooses the engine: the bundle's graph, or a vLLM outside of or inside this process. Labels and pairs
are decided elsewhere (`mechm_runtime.fusion.decision`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from mechm_runtime.bundle.manifest import LLAMA, PROJECTOR, Bundle, LlamaFiles
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.errors import BundleError, LlmUnavailableError
from mechm_runtime.fusion.combination import combine
from mechm_runtime.fusion.decision import emotion_probabilities, recalibrated
from mechm_runtime.fusion.inputs import FusionInputs
from mechm_runtime.fusion.run import FusionScores
from mechm_runtime.llm.graph import LlamaGraph
from mechm_runtime.llm.questions import QuestionTokenizer, pair_logits
from mechm_runtime.llm.scorer import EngineSteps, LlamaScorer, LlamaScores, SoftTokens, run_steps, run_steps_async
from mechm_runtime.llm.soft_tokens import Projector
from mechm_runtime.llm.vllm.client import VllmClient
from mechm_runtime.llm.vllm.config import ServerConfig
from mechm_runtime.llm.vllm.connection import UnexpectedAnswerError
from mechm_runtime.llm.vllm.embeddings import EmbeddingTable
from mechm_runtime.llm.vllm.in_process import InProcessVllm
from mechm_runtime.system.arrays import BoolArray
from mechm_runtime.system.progress import StageProgress
from mechm_runtime.system.thread_pool import ThreadPool
from mechm_runtime.system.time_limit import current_limit
from mechm_runtime.types import Utterance

Llm = Literal["none", "onnx", "vllm", "vllm-local"]
"""The Llama that is asked: none, the bundle's graph, a vLLM server, or a vLLM in this process."""

Missing = Sequence[dict[str, str]]
"""One dict per utterance, to which reasons are added: modality (or `llm`) -> what is missing and why."""


class LlmRescorer:
    """Combines the fusion's scores with a Llama's answers.

    scorer: asks the Llama. projector: makes its soft tokens; None where it reads words alone.
    asked_below: the Llama is asked about utterances whose likeliest emotion has less than this probability in the
        fusion; the others keep the fusion's scores.
    """

    def __init__(
        self, bundle: Bundle, files: LlamaFiles, scorer: LlamaScorer, projector: Projector | None, asked_below: float
    ) -> None:
        self.scorer = scorer
        self.asked_below = asked_below
        self._bundle = bundle
        self._files = files
        self._projector = projector

    def rescore(
        self,
        utterances: Sequence[Utterance],
        inputs: FusionInputs,
        fusion: FusionScores,
        missing: Missing,
        progress: StageProgress | None = None,
    ) -> FusionScores:
        """Combine the fusion's scores with the Llama's. What the Llama could not read is added to `missing`.

        Raises: LlmUnavailableError: a server does not answer. OutOfTimeError: no answer within the time limit.
        """
        return run_steps(self._steps(utterances, inputs, fusion, missing, progress), self.scorer.engine)

    async def rescore_async(
        self,
        utterances: Sequence[Utterance],
        inputs: FusionInputs,
        fusion: FusionScores,
        missing: Missing,
        threads: ThreadPool,
        progress: StageProgress | None = None,
    ) -> FusionScores:
        """`rescore` without blocking the event loop. Cancelled, it ends a server's request.

        threads: run what cannot be awaited. Raises: as `rescore`.
        """
        steps = self._steps(utterances, inputs, fusion, missing, progress)
        return await run_steps_async(steps, self.scorer.engine, threads)

    def _steps(
        self,
        utterances: Sequence[Utterance],
        inputs: FusionInputs,
        fusion: FusionScores,
        missing: Missing,
        progress: StageProgress | None,
    ) -> EngineSteps[FusionScores]:
        wanted = self.is_uncertain(fusion)
        soft = self.soft_tokens(inputs) if wanted.any() else None
        answers = yield from self.scorer.score_steps(utterances, soft, progress, wanted)
        if (limit := current_limit()) is not None:
            for index in np.flatnonzero(wanted & inputs.text_mask & ~answers.asked):
                missing[int(index)]["llm"] = limit.reason
        self.note_unread(utterances, inputs, answers.asked, missing)
        return self.combine(fusion, answers)

    def is_uncertain(self, fusion: FusionScores) -> BoolArray:
        """bool (U,): the utterances whose likeliest emotion is less probable than `asked_below`."""
        likeliest = emotion_probabilities(fusion.emotion_logits, self._bundle.decision).max(-1)
        # At 1 the Llama is asked about all utterances, also where the probability is rounded to 1.
        return np.asarray((likeliest < self.asked_below) | (self.asked_below >= 1.0))

    def check(self) -> None:
        """Check that the Llama's server answers now; does nothing where the Llama runs in this process.

        Raises: LlmUnavailableError: it does not. InputError: it serves another model, or refuses the key.
        """
        if isinstance(self.scorer.engine, VllmClient):
            self.scorer.engine.check()

    @property
    def soft_shape(self) -> tuple[int, int] | None:
        """Soft tokens per utterance, and their width; None where the Llama reads words alone."""
        return None if self._projector is None else (self._files.questions.soft_tokens, self.scorer.hidden_size)

    def soft_tokens(self, inputs: FusionInputs) -> SoftTokens | None:
        """Soft tokens of the utterances; None where no utterance has voice, face or frames, or for words alone."""
        return None if self._projector is None else self._projector.project(inputs)

    def note_unread(
        self, utterances: Sequence[Utterance], inputs: FusionInputs, asked: BoolArray, missing: Missing
    ) -> None:
        """Add to `missing` what the Llama could not read of the utterances that it was asked about."""
        if self._files.questions.soft_tokens and self._projector is None:
            for index in (inputs.has_nonverbal() & asked).nonzero()[0].tolist():
                missing[index]["llm"] = (
                    "voice, face and frames: the bundle lacks the embeddings for them, which mechm export llm adds"
                )
        for index, n_tokens in self.scorer.overlong(utterances).items():
            if asked[index]:
                missing[index]["llm"] = f"the middle of its {n_tokens} tokens"

    def combine(self, fusion: FusionScores, answers: LlamaScores) -> FusionScores:
        """Combine both scores into logits that the Llama's decision constants apply to.

        Utterances that the Llama was not asked about keep the fusion's probabilities: the combination was fitted on
        utterances that it was asked about.
        """
        files, own = self._files, self._bundle.decision
        unasked = ~answers.asked
        causes = pair_logits(answers.causes, fusion.first_cause, fusion.pair_logits.shape[1])
        causes[unasked] = -np.inf
        emotions, pairs = combine(
            (fusion.emotion_logits, fusion.pair_logits), (answers.emotions, causes), files.combination
        )
        emotions[unasked], pairs[unasked] = recalibrated(
            fusion.emotion_logits[unasked], fusion.pair_logits[unasked], own, files.decision
        )
        return replace(fusion, emotion_logits=emotions, pair_logits=pairs)


def make_rescorer(
    bundle: Bundle,
    llm: Llm,
    server: ServerConfig | None,
    fusion: GraphRunner,
    load: Callable[[str], GraphRunner],
    asked_below: float | None = None,
) -> LlmRescorer | None:
    """Make the rescorer of a bundle; None for the Llama `none`.

    server: address of the server, for `vllm`; it may come and go, also now.
    fusion: runs the fusion's graph. load: makes the runner of another part of the bundle.
    asked_below: see `LlmRescorer`; None for the bundle's value.
    Raises: BundleError: the bundle lacks what is asked for. InputError: the server serves another model.
        LlmUnavailableError: what is at the address is no model server.
    """
    if llm == "none":
        return None
    files = bundle.llama
    if files is None:
        raise BundleError(
            "the bundle has no Llama",
            hint="use --llm none; or, with mechm[export], mechm export bundle --adapter DIR adds one",
        )
    questions = QuestionTokenizer(bundle.path(files.tokenizer), files.questions)
    engine: GraphRunner
    if llm == "onnx":
        engine = LlamaGraph(load(LLAMA), bundle.parts[LLAMA])
    elif llm == "vllm":
        embeddings = None if bundle.served is None else EmbeddingTable(bundle.folder / bundle.served.folder)
        client = VllmClient(server or ServerConfig(), questions, embeddings)
        try:
            client.check()
        except UnexpectedAnswerError:
            raise
        except LlmUnavailableError:
            pass  # a server that is down may come; until then each result says why it lacks the Llama
        engine = client
    else:
        engine = InProcessVllm(bundle, questions)
    reads_soft_tokens = files.questions.soft_tokens > 0 and (llm != "vllm" or bundle.served is not None)
    projector = Projector(fusion, load(PROJECTOR), bundle.fusion) if reads_soft_tokens else None
    scorer = LlamaScorer(questions, engine, bundle.parts[LLAMA].width("soft_tokens"))
    below = files.combination.asked_below if asked_below is None else asked_below
    return LlmRescorer(bundle, files, scorer, projector, below)
