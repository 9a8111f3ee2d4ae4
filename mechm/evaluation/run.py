"""Score a submission, or anything that analyses conversations, on annotated ones.

What analyses is a function, so that a runtime pipeline, a model in training and a test's rule are scored alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from mechm.evaluation.report import ScoreReport, Speed
from mechm.evaluation.scorer import Pairs, score_emotions, score_pairs
from mechm_runtime.errors import InputError, LabelError
from mechm_runtime.types import Analysis, Conversation, LabelledConversation, Pair


def score_submission(
    gold: Sequence[LabelledConversation], predicted: Pairs, *, gold_name: str, system: str
) -> ScoreReport:
    """Score predicted pairs.

    gold_name, system: the names that the report carries.

    Raises: LabelError: as `score_pairs`.
    """
    return ScoreReport(
        gold=gold_name,
        system=system,
        modalities="",
        n_conversations=len(gold),
        n_utterances=sum(len(labelled.emotions) for labelled in gold),
        pairs=score_pairs(gold, predicted),
    )


def evaluate(
    gold: Sequence[LabelledConversation],
    analyze: Callable[[Conversation], Analysis],
    *,
    gold_name: str,
    system: str,
    conversations: Sequence[Conversation] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> ScoreReport:
    """Analyse every conversation and score pairs and emotions.

    conversations: what is analysed in place of the gold conversations themselves, in the same order: the same with
        clips attached. Without it only text is analysed.
    on_progress: called after each conversation with its number of utterances.

    Raises: InputError: no conversations. LabelError: `conversations` are others than the gold's, or an answer is for
        other utterances than those asked about. Whatever `analyze` raises.
    """
    if not gold:
        raise InputError("no conversations to evaluate")
    asked = [labelled.conversation for labelled in gold] if conversations is None else list(conversations)
    if [c.id for c in asked] != [labelled.conversation.id for labelled in gold]:
        raise LabelError("the conversations to analyse are not those of the gold")
    pairs: dict[str, Sequence[Pair]] = {}
    emotions: dict[str, Sequence[str | None]] = {}
    elapsed_ms: list[float] = []
    for conversation in asked:
        started = time.perf_counter()
        analysis = analyze(conversation)
        elapsed_ms.append((time.perf_counter() - started) * 1000)
        if [u.id for u in analysis.utterances] != [u.id for u in conversation.utterances]:
            raise LabelError(f"conversation {conversation.id}: the analysis is of other utterances")
        pairs[conversation.id] = analysis.pairs
        emotions[conversation.id] = [utterance.emotion for utterance in analysis.utterances]
        if on_progress is not None:
            on_progress(len(conversation.utterances))
    report = score_submission(gold, pairs, gold_name=gold_name, system=system)
    p50_ms, p99_ms = np.percentile(elapsed_ms, [50, 99])
    return replace(
        report,
        modalities="text" if conversations is None else "text + clips",
        emotions=score_emotions(gold, emotions),
        speed=Speed(float(p50_ms), float(p99_ms), sum(elapsed_ms) / 1000),
        n_missing_clips=0
        if conversations is None
        else sum(utterance.media is None for conversation in asked for utterance in conversation.utterances),
    )
