"""Accuracy of each system by the task's official scorer, so that every speed has its accuracy beside it.

Rivals are scored on the first conversations only, since those that generate text take minutes; MECHM is scored on
these and on all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mechm.bench.rivals.per_utterance import PerUtteranceSystem
from mechm.bench.systems import System
from mechm.evaluation.run import evaluate
from mechm_runtime.system.progress import Progress
from mechm_runtime.types import Analysis, Conversation, LabelledConversation


@dataclass(frozen=True, slots=True)
class Score:
    """Scores on the first conversations of the gold file, text alone; each score in [0, 1]."""

    n_conversations: int
    n_utterances: int
    weighted_f1: float
    micro_f1: float
    emotion_accuracy: float


@dataclass(frozen=True, slots=True)
class SystemScores:
    """short: on the conversations that every system answered. whole: on all; None for rivals."""

    system: str
    is_rival: bool
    llm: bool
    short: Score
    whole: Score | None


@dataclass(frozen=True, slots=True)
class Accuracy:
    """gold: the name of the gold file, which identifies the split."""

    gold: str
    systems: tuple[SystemScores, ...]


def run_accuracy(
    own: Sequence[System],
    rivals: Sequence[PerUtteranceSystem],
    gold: Sequence[LabelledConversation],
    gold_name: str,
    *,
    n_short: int,
    on_progress: Progress,
) -> Accuracy:
    """Score prepared systems; afterwards the rivals generate one token per answer.

    gold: scored by MECHM. n_short: how many of them every system is scored on.
    """
    rows = []
    for system in own:
        answers: dict[str, Analysis] = {}
        whole = _score(_storing(system, answers), gold, gold_name, system.name, on_progress)
        short = _score(_from(answers), gold[:n_short], gold_name, system.name, on_progress)
        rows.append(SystemScores(system.name, False, system.llm, short, whole))
    for rival in rivals:
        # The first token decides the answer, so one gives the same answers as twenty.
        rival.n_tokens = 1
        short = _score(rival.analyze, gold[:n_short], gold_name, rival.name, on_progress)
        rows.append(SystemScores(rival.name, True, rival.llm, short, None))
    return Accuracy(gold_name, tuple(rows))


def _storing(system: System, answers: dict[str, Analysis]) -> Callable[[Conversation], Analysis]:
    """The system's analysis, which also stores every answer."""

    def analyze(conversation: Conversation) -> Analysis:
        answers[conversation.id] = system.analyze(conversation)
        return answers[conversation.id]

    return analyze


def _from(answers: Mapping[str, Analysis]) -> Callable[[Conversation], Analysis]:
    """Stored answers in place of an analysis."""
    return lambda conversation: answers[conversation.id]


def _score(
    analyze: Callable[[Conversation], Analysis],
    gold: Sequence[LabelledConversation],
    gold_name: str,
    name: str,
    on_progress: Progress,
) -> Score:
    n_utterances = sum(len(one.emotions) for one in gold)
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        on_progress(f"accuracy: {name}", done, n_utterances)

    report = evaluate(gold, analyze, gold_name=gold_name, system=name, on_progress=advance)
    accuracy = 0.0 if report.emotions is None else report.emotions.accuracy
    return Score(
        len(gold),
        n_utterances,
        round(report.pairs.weighted.f1, 4),
        round(report.pairs.micro.f1, 4),
        round(accuracy, 4),
    )
