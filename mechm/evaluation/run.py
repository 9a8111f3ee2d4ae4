"""Scores a submission, or any function that analyses conversations, on annotated ones.

Taking a function lets a runtime pipeline, a model in training and a test's rule be scored in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from mechm.evaluation.abstention import RiskCoverage, score_abstention, score_risk_coverage
from mechm.evaluation.reliability import score_reliability
from mechm.evaluation.report import Calibration, ScoreReport, Speed
from mechm.evaluation.scorer import Pairs, score_emotions, score_pairs
from mechm_runtime.errors import InputError, LabelError
from mechm_runtime.output.formatting import strongest
from mechm_runtime.types import Analysis, Conversation, LabelledConversation


def score_submission(
    gold: Sequence[LabelledConversation], predicted: Pairs, *, gold_name: str, system: str
) -> ScoreReport:
    """Score predicted pairs.

    gold_name, system: names for the report.

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
    abstain_below: Sequence[float] = (),
    on_progress: Callable[[int], None] | None = None,
) -> ScoreReport:
    """Analyse every conversation and score pairs, emotions and probabilities.

    conversations: the gold conversations with clips attached, in the same order; None analyses text only.
    abstain_below: probabilities; for each the report has the scores with abstention below it.
    on_progress: called after each conversation with its number of utterances.

    Raises: InputError: no conversations. LabelError: `conversations` differ from the gold's, or an answer is about
        other utterances than those asked about. Any error of `analyze`.
    """
    if not gold:
        raise InputError("no conversations to evaluate")
    asked = [labelled.conversation for labelled in gold] if conversations is None else list(conversations)
    if [c.id for c in asked] != [labelled.conversation.id for labelled in gold]:
        raise LabelError("the conversations to analyse are not those of the gold")
    analyses: list[Analysis] = []
    elapsed_ms: list[float] = []
    for conversation in asked:
        started = time.perf_counter()
        analysis = analyze(conversation)
        elapsed_ms.append((time.perf_counter() - started) * 1000)
        if [u.id for u in analysis.utterances] != [u.id for u in conversation.utterances]:
            raise LabelError(f"conversation {conversation.id}: the analysis is of other utterances")
        analyses.append(analysis)
        if on_progress is not None:
            on_progress(len(conversation.utterances))
    pairs = {conversation.id: analysis.pairs for conversation, analysis in zip(asked, analyses, strict=True)}
    emotions = {
        conversation.id: [utterance.emotion for utterance in analysis.utterances]
        for conversation, analysis in zip(asked, analyses, strict=True)
    }
    report = score_submission(gold, pairs, gold_name=gold_name, system=system)
    p50_ms, p99_ms = np.percentile(elapsed_ms, [50, 99])
    return replace(
        report,
        modalities="text" if conversations is None else "text + clips",
        emotions=score_emotions(gold, emotions),
        calibration=_calibration(gold, analyses),
        risk_coverage=_risk_coverage(gold, analyses),
        abstention=tuple(score_abstention(gold, analyses, below) for below in abstain_below),
        speed=Speed(float(p50_ms), float(p99_ms), sum(elapsed_ms) / 1000),
        n_missing_clips=0
        if conversations is None
        else sum(utterance.media is None for conversation in asked for utterance in conversation.utterances),
    )


def _calibration(gold: Sequence[LabelledConversation], analyses: Sequence[Analysis]) -> Calibration:
    likeliest = [strongest(utterance) for analysis in analyses for utterance in analysis.utterances]
    truths = [emotion for labelled in gold for emotion in labelled.emotions]
    pairs = [
        (pair.probability, (pair.emotion_utterance, pair.emotion, pair.cause_utterance) in annotated)
        for labelled, analysis in zip(gold, analyses, strict=True)
        for annotated in ({(p.emotion_utterance, p.emotion, p.cause_utterance) for p in labelled.pairs},)
        for pair in analysis.pairs
    ]
    return Calibration(
        emotions=score_reliability(
            [probability for _, probability in likeliest],
            [label == truth for (label, _), truth in zip(likeliest, truths, strict=True)],
        ),
        pairs=score_reliability([probability for probability, _ in pairs], [right for _, right in pairs]),
    )


def _risk_coverage(gold: Sequence[LabelledConversation], analyses: Sequence[Analysis]) -> RiskCoverage:
    truths = [emotion for labelled in gold for emotion in labelled.emotions]
    utterances = [utterance for analysis in analyses for utterance in analysis.utterances]
    answered = [
        (strongest(utterance)[1], utterance.emotion == truth)
        for utterance, truth in zip(utterances, truths, strict=True)
        if utterance.emotion is not None
    ]
    return score_risk_coverage(
        [confidence for confidence, _ in answered], [right for _, right in answered], len(utterances)
    )
