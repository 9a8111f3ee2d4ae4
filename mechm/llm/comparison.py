"""Compares two language models' answers on conversations.

It verifies that a merged, rounded or converted model still answers as its source. Accuracy on annotated data is
measured by `mechm.evaluation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from mechm.llm.scorer import AnswerScores, make_question_batch
from mechm_runtime.bundle.config import DecisionConfig
from mechm_runtime.fusion.decision import Decision, decide
from mechm_runtime.llm.questions import QuestionTokenizer, pair_logits
from mechm_runtime.system.progress import StageProgress
from mechm_runtime.types import Conversation

LogProbabilities = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers on one conversation's utterances.

    emotion: float32 (U, 7), log-probabilities. cause: float32 (U, answers), log-probabilities, `NO_CAUSE` last.
    """

    emotion: LogProbabilities
    cause: LogProbabilities


@dataclass(frozen=True, slots=True)
class AnswerDifference:
    """Difference of answers from a reference.

    largest: largest difference of two log-probabilities, in nats. mean_kl: mean Kullback-Leibler divergence from the
    reference per question, in nats. n_labels, n_pairs: emotions and pairs of the reference; n_*_changed: number of
    decisions that differ (pairs found by only one of the two count).
    """

    largest: float
    mean_kl: float
    n_labels: int
    n_labels_changed: int
    n_pairs: int
    n_pairs_changed: int


def answer(
    scores: AnswerScores,
    tokenizer: QuestionTokenizer,
    conversations: Sequence[Conversation],
    on_conversation: StageProgress | None = None,
) -> list[Answers]:
    """Ask for the emotion and the causes of every utterance, one conversation at a time.

    on_conversation: called with (conversations done, conversations in total).
    """
    scores.eval()
    answers = []
    with torch.inference_mode():
        for done, conversation in enumerate(conversations, 1):
            utterances = conversation.utterances
            batch = make_question_batch([tokenizer.pack(utterances, range(len(utterances)))])
            emotion, cause = (logits.log_softmax(-1).cpu().numpy() for logits in scores(batch.to(scores.device)))
            answers.append(Answers(emotion, cause))
            if on_conversation is not None:
                on_conversation(done, len(conversations))
    return answers


def compare_answers(
    reference: Sequence[Answers], other: Sequence[Answers], decision: DecisionConfig
) -> AnswerDifference:
    """Compare answers on the same conversations; a NaN counts as an infinite difference."""
    largest, divergences = 0.0, []
    n_labels = n_labels_changed = n_pairs = n_pairs_changed = 0
    for one, two in zip(reference, other, strict=True):
        for a, b in ((one.emotion, two.emotion), (one.cause, two.cause)):
            difference = np.abs(a - b)
            largest = max(largest, float(np.where(np.isfinite(difference), difference, np.inf).max()))
            # In fp64, since in fp32 the divergence of nearly equal answers can be negative.
            a, b = a.astype(np.float64), b.astype(np.float64)
            divergences.append((np.exp(a) * (a - b) + np.exp(b) - np.exp(a)).sum(-1))
        before, after = _decide(one, decision), _decide(two, decision)
        n_labels += len(before.labels)
        n_labels_changed += int((before.labels != after.labels).sum())
        pairs, pairs_after = ({(i, j) for i, j, _ in decided.pairs} for decided in (before, after))
        n_pairs += len(pairs)
        n_pairs_changed += len(pairs ^ pairs_after)
    mean_kl = float(np.concatenate(divergences).mean())
    return AnswerDifference(
        largest, mean_kl if np.isfinite(mean_kl) else np.inf, n_labels, n_labels_changed, n_pairs, n_pairs_changed
    )


def _decide(answers: Answers, decision: DecisionConfig) -> Decision:
    return decide(answers.emotion, pair_logits(answers.cause), decision)
