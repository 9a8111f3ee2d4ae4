"""A score report: the system, the gold file and the scores, as JSON and as tables for a terminal.

Every report names its gold file and that file's size, since scores on ECF 1.0 `test` and on ECF 2.0 are not comparable.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mechm.evaluation.abstention import AbstentionScores, RiskCoverage
from mechm.evaluation.reliability import Reliability
from mechm.evaluation.scorer import DISTANCES, ClassScore, EmotionScores, PairScores, Prf
from mechm_runtime.types import EMOTIONS

DISTANCE_NAMES = dict(
    zip(DISTANCES, ("the same utterance", "1 back", "2 back", "3 or more back", "ahead"), strict=True)
)


@dataclass(frozen=True, slots=True)
class Speed:
    """Wall-clock milliseconds per conversation, over the conversations of one run."""

    p50_ms: float
    p99_ms: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Calibration of two kinds of answers.

    emotions: each utterance's likeliest emotion, whatever was decided. pairs: the predicted pairs.
    """

    emotions: Reliability
    pairs: Reliability


@dataclass(frozen=True, slots=True)
class ScoreReport:
    """The scores of one system on one gold file.

    gold: the gold file's name, which identifies the split.
    system: a submission's file name, or a bundle's id, precision and engine.
    modalities: "text" or "text + clips" for a bundle, "" for a submission.
    emotions, calibration, risk_coverage: None for a submission, which has neither labels nor probabilities.
    abstention: one entry per threshold that was asked for.
    n_missing_clips: utterances without a clip, if clips were asked for.
    """

    gold: str
    system: str
    modalities: str
    n_conversations: int
    n_utterances: int
    pairs: PairScores
    emotions: EmotionScores | None = None
    calibration: Calibration | None = None
    risk_coverage: RiskCoverage | None = None
    abstention: tuple[AbstentionScores, ...] = ()
    speed: Speed | None = None
    n_missing_clips: int = 0

    def to_json(self, *, indent: int | None = 2) -> str:
        """This report as JSON text with the field names of the dataclasses."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=indent)


def render(report: ScoreReport) -> RenderableType:
    """The report as tables for a `rich` console."""
    return Group(*_parts(report))


def _parts(report: ScoreReport) -> Iterator[RenderableType]:
    pairs = report.pairs
    size = f"{report.n_conversations:,} conversations, {report.n_utterances:,} utterances, {pairs.n_gold:,} pairs"
    yield Text(f"Gold    {report.gold} ({size})")
    yield Text(f"System  {report.system}" + (f" ({report.modalities})" if report.modalities else ""))
    yield _pair_table(report)
    yield _distance_table(report)
    if report.emotions is not None:
        yield _emotion_table(report.emotions, report.gold)
        yield _confusion_table(report.emotions, report.gold)
    if report.calibration is not None and report.risk_coverage is not None:
        yield Text(_calibration_line(report.calibration))
        yield Text(_risk_line(report.risk_coverage))
    if report.abstention:
        yield _abstention_table(report)
    if report.speed is not None:
        speed = report.speed
        yield Text(
            f"Speed   {speed.p50_ms:.1f} ms per conversation (p50), {speed.p99_ms:.1f} ms (p99), "
            f"{speed.total_s:.1f} s in total"
        )
    for count, what in (
        (report.n_missing_clips, "utterances have no clip and were analysed from their text"),
        (pairs.n_ignored_neutral, "neutral pairs are not scored"),
        (pairs.n_ignored_conversations, "predicted conversations are not in the gold file"),
    ):
        if count:
            yield Text(f"Note    {count:,} {what}")


def _pair_table(report: ScoreReport) -> Table:
    pairs = report.pairs
    table = _table(f"Emotion-cause pairs on {report.gold}", "", "precision", "recall", "F1", "gold", "found", "right")
    averages: tuple[tuple[str, Prf], ...] = (
        ("weighted (the task's)", pairs.weighted),
        ("micro", pairs.micro),
        ("macro", pairs.macro),
    )
    for name, score in averages:
        counts = (f"{pairs.n_gold:,}", f"{pairs.n_predicted:,}", f"{pairs.n_correct:,}") if name == "micro" else ()
        table.add_row(name, *_numbers(score), *counts, style="bold" if score is pairs.weighted else "")
    table.add_section()
    for emotion, class_score in pairs.per_emotion.items():
        table.add_row(emotion, *_numbers(class_score), *_counts(class_score))
    return table


def _distance_table(report: ScoreReport) -> Table:
    title = f"Pairs by the distance from emotion to cause, on {report.gold}"
    table = _table(title, "", "precision", "recall", "F1", "gold", "found", "right")
    for distance, score in report.pairs.per_distance.items():
        table.add_row(DISTANCE_NAMES[distance], *_numbers(score), *_counts(score))
    return table


def _calibration_line(calibration: Calibration) -> str:
    return (
        f"Calibration error (ECE)  {calibration.emotions.ece:.4f} of {calibration.emotions.n:,} emotions, "
        f"{calibration.pairs.ece:.4f} of {calibration.pairs.n:,} pairs that were found"
    )


def _risk_line(risk: RiskCoverage) -> str:
    at = ", ".join(
        f"{float(coverage):.0%}: " + ("not answered" if accuracy is None else f"{accuracy:.4f}")
        for coverage, accuracy in risk.accuracy_at.items()
    )
    return f"Risk and coverage  AURC {risk.aurc:.4f}; accuracy on the surest {at}"


def _abstention_table(report: ScoreReport) -> Table:
    table = _table(
        f"Scores with abstention below a probability, on {report.gold}",
        "below",
        *("coverage", "answered", "accuracy", "emotion F1", "pair F1", "pair F1 (answered)"),
    )
    for one in report.abstention:
        table.add_row(
            f"{one.abstain_below:g}",
            f"{one.coverage:.1%}",
            f"{one.n_answered:,}",
            *(f"{value:.4f}" for value in (one.accuracy, one.emotion_weighted_f1)),
            *(f"{value:.4f}" for value in (one.weighted_f1, one.weighted_f1_answered)),
        )
    return table


def _emotion_table(emotions: EmotionScores, gold: str) -> Table:
    title = (
        f"Emotions on {gold}: accuracy {emotions.accuracy:.4f}, "
        f"weighted F1 {emotions.weighted_f1:.4f}, macro F1 {emotions.macro_f1:.4f}"
    )
    table = _table(title, "", "precision", "recall", "F1", "gold", "found", "right")
    for emotion, score in emotions.per_emotion.items():
        table.add_row(emotion, *_numbers(score), *_counts(score))
    return table


def _confusion_table(emotions: EmotionScores, gold: str) -> Table:
    abstains = any(emotions.abstained)
    table = _table(
        f"Confusion on {gold}: a row per annotated emotion", "", *EMOTIONS, *(("abstained",) if abstains else ())
    )
    for i, (emotion, row) in enumerate(zip(EMOTIONS, emotions.confusion, strict=True)):
        cells = [f"[bold]{count:,}[/bold]" if i == j else f"{count:,}" for j, count in enumerate(row)]
        table.add_row(emotion, *cells, *((f"{emotions.abstained[i]:,}",) if abstains else ()))
    return table


def _table(title: str, first: str, *columns: str) -> Table:
    # The title may hold a file name: as Text its brackets are not markup.
    table = Table(title=Text(title, style="bold"), title_justify="left", show_edge=False)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _numbers(score: Prf | ClassScore) -> tuple[str, str, str]:
    return f"{score.precision:.4f}", f"{score.recall:.4f}", f"{score.f1:.4f}"


def _counts(score: ClassScore) -> tuple[str, str, str]:
    return f"{score.n_gold:,}", f"{score.n_predicted:,}", f"{score.n_correct:,}"
