"""The Llama's part in an analysis: asked what the fusion has scored, and weighed against it.

What answers, the bundle's graph or a vLLM in or outside this process, is chosen in one place (`make_adviser`) and
asked in one way. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from mechm_runtime.bundle import LLAMA, PROJECTOR, Bundle, LlamaFiles
from mechm_runtime.combination import combine
from mechm_runtime.decision import emotion_logits_of, emotion_probabilities
from mechm_runtime.engine import GraphRunner
from mechm_runtime.errors import BundleError
from mechm_runtime.fusion import FusionInputs, FusionScores
from mechm_runtime.llama import Asking, LlamaReader, answered, answered_async
from mechm_runtime.llama_graph import LlamaGraph
from mechm_runtime.projector import Projector
from mechm_runtime.questions import QuestionTokenizer, pair_logits
from mechm_runtime.serving.client import VllmServer
from mechm_runtime.serving.embeddings import EmbeddingTable
from mechm_runtime.serving.local import LocalVllm
from mechm_runtime.serving.settings import ServerConfig
from mechm_runtime.types import Utterance

Llm = Literal["none", "onnx", "vllm", "vllm-local"]
"""Which Llama is asked: none, the bundle's graph, a vLLM server, or a vLLM in this process."""

Missing = Sequence[dict[str, str]]
"""What is missing of each utterance, by modality, and why; added to."""


class Adviser:
    """Weighs a Llama's answers against the fusion's.

    projector: tells the Llama what was heard and seen; None for words alone.
    """

    def __init__(self, bundle: Bundle, files: LlamaFiles, reader: LlamaReader, projector: Projector | None) -> None:
        self._bundle = bundle
        self._files = files
        self._reader = reader
        self._projector = projector

    def advise(
        self,
        utterances: Sequence[Utterance],
        inputs: FusionInputs,
        fusion: FusionScores,
        missing: Missing,
        progress: Callable[[int, int], None] | None = None,
    ) -> FusionScores:
        """The fusion's scores with the Llama's weighed in; what the Llama did not get to read is added to `missing`.

        Raises: LlmUnavailableError: a server does not answer.
        """
        return answered(self._steps(utterances, inputs, fusion, missing, progress), self._reader.engine)

    async def advise_async(
        self,
        utterances: Sequence[Utterance],
        inputs: FusionInputs,
        fusion: FusionScores,
        missing: Missing,
        progress: Callable[[int, int], None] | None = None,
    ) -> FusionScores:
        """The same, awaiting what answers. Cancelled, it ends a server's request.

        Raises: as `advise`.
        """
        return await answered_async(self._steps(utterances, inputs, fusion, missing, progress), self._reader.engine)

    def _steps(
        self,
        utterances: Sequence[Utterance],
        inputs: FusionInputs,
        fusion: FusionScores,
        missing: Missing,
        progress: Callable[[int, int], None] | None,
    ) -> Asking[FusionScores]:
        files = self._files
        soft = None if self._projector is None else self._projector.project(inputs)
        if files.questions.soft_tokens and self._projector is None:
            for index in inputs.evident().nonzero()[0].tolist():
                missing[index]["llm"] = (
                    "what was heard and seen: mechm export llm puts the embeddings that it takes into the bundle"
                )
        answers = yield from self._reader.steps(utterances, soft, progress)
        for index, n_tokens in self._reader.overlong(utterances).items():
            missing[index]["llm"] = f"the middle of its {n_tokens} tokens"
        causes = pair_logits(answers.causes, fusion.first_cause, fusion.pair_logits.shape[1])
        causes[~answers.asked] = -np.inf
        emotions, pairs = combine(
            (fusion.emotion_logits, fusion.pair_logits), (answers.emotions, causes), files.combination
        )
        # Without words the fusion's own calibration holds: the combination's was fitted on words, which bends a voice.
        silent = emotion_probabilities(fusion.emotion_logits[~answers.asked], self._bundle.decision)
        emotions[~answers.asked] = emotion_logits_of(silent, files.decision)
        return replace(fusion, emotion_logits=emotions, pair_logits=pairs)


def make_adviser(
    bundle: Bundle, llm: Llm, server: ServerConfig | None, fusion: GraphRunner, load: Callable[[str], GraphRunner]
) -> Adviser | None:
    """What advises, None for `none`.

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
    return Adviser(bundle, files, reader, projector)
