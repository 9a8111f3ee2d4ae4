"""The Llama's part in an analysis: asked what the fusion has scored, and weighed against it.

What answers, the bundle's graph or a vLLM in or outside this process, is chosen in one place (`make_adviser`) and
asked in one way. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from mechm_runtime.bundle.manifest import LLAMA, PROJECTOR, Bundle, LlamaFiles
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.errors import BundleError
from mechm_runtime.fusion.combination import combine
from mechm_runtime.fusion.decision import emotion_probabilities, recalibrated
from mechm_runtime.fusion.inputs import FusionInputs
from mechm_runtime.fusion.run import FusionScores
from mechm_runtime.llm.graph import LlamaGraph
from mechm_runtime.llm.questions import QuestionTokenizer, pair_logits
from mechm_runtime.llm.scorer import Asking, LlamaReader, LlamaScores, SoftTokens, answered, answered_async
from mechm_runtime.llm.soft_tokens import Projector
from mechm_runtime.llm.vllm.client import VllmServer
from mechm_runtime.llm.vllm.config import ServerConfig
from mechm_runtime.llm.vllm.embeddings import EmbeddingTable
from mechm_runtime.llm.vllm.in_process import LocalVllm
from mechm_runtime.system.progress import StageProgress
from mechm_runtime.types import Utterance

Llm = Literal["none", "onnx", "vllm", "vllm-local"]
"""Which Llama is asked: none, the bundle's graph, a vLLM server, or a vLLM in this process."""

Missing = Sequence[dict[str, str]]
"""What is missing of each utterance, by modality, and why; added to."""


class Adviser:
    """Weighs a Llama's answers against the fusion's.

    reader: asks the Llama. projector: tells it what was heard and seen; None for words alone.
    asked_below: the Llama is asked about utterances whose likeliest emotion has less than this probability in the
        fusion; where the fusion is surer, its own scores stand.
    """

    def __init__(
        self, bundle: Bundle, files: LlamaFiles, reader: LlamaReader, projector: Projector | None, asked_below: float
    ) -> None:
        self.reader = reader
        self.asked_below = asked_below
        self._bundle = bundle
        self._files = files
        self._projector = projector

    def advise(
        self,
        utterances: Sequence[Utterance],
        inputs: FusionInputs,
        fusion: FusionScores,
        missing: Missing,
        progress: StageProgress | None = None,
    ) -> FusionScores:
        """The fusion's scores with the Llama's weighed in; what the Llama did not get to read is added to `missing`.

        Raises: LlmUnavailableError: a server does not answer.
        """
        return answered(self._steps(utterances, inputs, fusion, missing, progress), self.reader.engine)

    async def advise_async(
        self,
        utterances: Sequence[Utterance],
        inputs: FusionInputs,
        fusion: FusionScores,
        missing: Missing,
        progress: StageProgress | None = None,
    ) -> FusionScores:
        """The same, awaiting what answers. Cancelled, it ends a server's request.

        Raises: as `advise`.
        """
        return await answered_async(self._steps(utterances, inputs, fusion, missing, progress), self.reader.engine)

    def _steps(
        self,
        utterances: Sequence[Utterance],
        inputs: FusionInputs,
        fusion: FusionScores,
        missing: Missing,
        progress: StageProgress | None,
    ) -> Asking[FusionScores]:
        wanted = self.unsure(fusion)
        soft = self.soft_tokens(inputs) if wanted.any() else None
        answers = yield from self.reader.steps(utterances, soft, progress, wanted)
        self.note_unread(utterances, inputs, answers.asked, missing)
        return self.weigh(fusion, answers)

    def unsure(self, fusion: FusionScores) -> npt.NDArray[np.bool_]:
        """bool (U,): whether the Llama is worth asking about an utterance."""
        likeliest = emotion_probabilities(fusion.emotion_logits, self._bundle.decision).max(-1)
        # At 1 everything is asked about, also what rounds to certain.
        return np.asarray((likeliest < self.asked_below) | (self.asked_below >= 1.0))

    @property
    def soft_shape(self) -> tuple[int, int] | None:
        """Soft tokens of an utterance, and their width; None where the Llama reads words alone."""
        return None if self._projector is None else (self._files.questions.soft_tokens, self.reader.hidden_size)

    def soft_tokens(self, inputs: FusionInputs) -> SoftTokens | None:
        """What was heard and seen as the Llama reads it; None where that is nothing, or the Llama reads words alone."""
        return None if self._projector is None else self._projector.project(inputs)

    def note_unread(
        self,
        utterances: Sequence[Utterance],
        inputs: FusionInputs,
        asked: npt.NDArray[np.bool_],
        missing: Missing,
    ) -> None:
        """Say of utterances that were asked about what the Llama did not get to read."""
        if self._files.questions.soft_tokens and self._projector is None:
            for index in (inputs.has_nonverbal() & asked).nonzero()[0].tolist():
                missing[index]["llm"] = (
                    "what was heard and seen: mechm export llm puts the embeddings that it takes into the bundle"
                )
        for index, n_tokens in self.reader.overlong(utterances).items():
            if asked[index]:
                missing[index]["llm"] = f"the middle of its {n_tokens} tokens"

    def weigh(self, fusion: FusionScores, answers: LlamaScores) -> FusionScores:
        """Both scores as one, to be decided with the Llama's constants.

        Where nothing was asked the fusion's own probabilities hold: the combination was fitted on answers.
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


def make_adviser(
    bundle: Bundle,
    llm: Llm,
    server: ServerConfig | None,
    fusion: GraphRunner,
    load: Callable[[str], GraphRunner],
    asked_below: float | None = None,
) -> Adviser | None:
    """What advises, None for `none`.

    asked_below: see `Adviser`; None for what the bundle says.

    server: where it is, for `vllm`; it must be there now, later it may come and go.
    fusion: the fusion's graph. load: what runs another part of the bundle.
    Raises: BundleError: the bundle has not what is asked for. InputError: the server serves something else.
        LlmUnavailableError: there is no server.
    """
    if llm == "none":
        return None
    files = bundle.llama
    if files is None:
        raise BundleError("the bundle has no Llama", hint="mechm export bundle --llm DIR adds one; or use --llm none")
    questions = QuestionTokenizer(bundle.path(files.tokenizer), files.questions)
    engine: GraphRunner
    if llm == "onnx":
        engine = LlamaGraph(load(LLAMA), bundle.parts[LLAMA])
    elif llm == "vllm":
        embeddings = None if bundle.served is None else EmbeddingTable(bundle.folder / bundle.served.folder)
        asked = VllmServer(server or ServerConfig(), questions, embeddings)
        asked.check()
        engine = asked
    else:
        engine = LocalVllm(bundle, questions)
    reads_soft_tokens = files.questions.soft_tokens > 0 and (llm != "vllm" or bundle.served is not None)
    projector = Projector(fusion, load(PROJECTOR), bundle.fusion) if reads_soft_tokens else None
    reader = LlamaReader(questions, engine, bundle.parts[LLAMA].width("soft_tokens"))
    below = files.combination.asked_below if asked_below is None else asked_below
    return Adviser(bundle, files, reader, projector, below)
