"""Scores: the task's pair score, emotion recognition, and reports of both."""

from mechm.evaluation.scorer import (
    DISTANCES,
    SCORED_EMOTIONS,
    ClassScore,
    DistanceRecall,
    EmotionScores,
    PairScores,
    Prf,
    score_emotions,
    score_pairs,
)

__all__ = [
    "DISTANCES",
    "SCORED_EMOTIONS",
    "ClassScore",
    "DistanceRecall",
    "EmotionScores",
    "PairScores",
    "Prf",
    "score_emotions",
    "score_pairs",
]
