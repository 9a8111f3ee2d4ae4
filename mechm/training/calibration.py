"""Fits the runtime's `DecisionConfig` on annotated conversations: probabilities first, then decision thresholds.

Calibration minimises the negative log-likelihood (a temperature and a bias per emotion: vector scaling with one shared
temperature, Guo et al. 2017; Platt scaling for causes). The decision's two constants are found by grid search for the
weighted F1 of SemEval-2024 Task 3. Weights are not changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from mechm_runtime.bundle.config import DecisionConfig
from mechm_runtime.fusion.decision import cause_probabilities, decide, emotion_probabilities
from mechm_runtime.types import EMOTIONS

NEUTRAL_LOG_BIASES: tuple[float, ...] = tuple(round(-1.5 + 0.1 * i, 2) for i in range(26))
F1_NOISE = 0.003
"""Differences of weighted F1 below this are not significant on a split like ECF's `dev`, of 112 conversations."""
PAIR_THRESHOLDS: tuple[float, ...] = tuple(round(0.1 + 0.02 * i, 2) for i in range(20))


@dataclass(frozen=True, slots=True)
class ScoredConversation:
    """A model's scores of a conversation with its annotation.

    emotion_logits: float32 (U, 7). pair_logits: float32 (U, U). emotions: int64 (U,). causes: bool (U, U).
    """

    emotion_logits: npt.NDArray[np.float32]
    pair_logits: npt.NDArray[np.float32]
    emotions: npt.NDArray[np.int64]
    causes: npt.NDArray[np.bool_]


def fit_decision(scored: Sequence[ScoredConversation]) -> DecisionConfig:
    """Calibrate on `scored`, then choose the neutral bias and the pair threshold for weighted F1 there.

    Of the biases within `F1_NOISE` of the best the smallest is chosen: F1 is flat over a wide range, in which a larger
    bias labels more neutral utterances as emotional and costs accuracy. Where no choice finds a pair, the decision
    keeps its defaults.
    """
    calibrated = fit_probabilities(scored)
    found = []
    for neutral_log_bias in sorted(NEUTRAL_LOG_BIASES, key=abs):
        f1 = weighted_f1(pair_counts(scored, replace(calibrated, neutral_log_bias=neutral_log_bias)))
        found.append((neutral_log_bias, PAIR_THRESHOLDS[int(f1.argmax())], float(f1.max())))
    best_f1 = max(f1 for _, _, f1 in found)
    if best_f1 == 0:
        return calibrated
    bias, threshold, _ = next(one for one in found if one[2] >= best_f1 - F1_NOISE)
    return calibrated.with_threshold(neutral_log_bias=bias, pair_threshold=threshold)


def pair_counts(
    scored: Sequence[ScoredConversation], config: DecisionConfig, thresholds: Sequence[float] = PAIR_THRESHOLDS
) -> npt.NDArray[np.int64]:
    """Count pairs as the task's metric does, for several pair thresholds instead of the config's own.

    Returns: int64 (thresholds, 6, 3): correct, predicted and annotated pairs per emotion, as `weighted_f1` takes them.
    """
    counts = np.zeros((len(thresholds), len(EMOTIONS) - 1, 3), np.int64)
    lowest = replace(config, pair_threshold=min(thresholds))
    for s in scored:
        decision = decide(s.emotion_logits, s.pair_logits, lowest)
        for i, j, probability in decision.pairs:
            label = int(decision.labels[i])
            accepted = probability >= np.asarray(thresholds)
            counts[accepted, label - 1, 1] += 1
            if s.emotions[i] == label and s.causes[i, j]:
                counts[accepted, label - 1, 0] += 1
        n_causes = np.bincount(s.emotions, weights=s.causes.sum(-1), minlength=len(EMOTIONS))
        counts[:, :, 2] += n_causes[1:].astype(np.int64)
    return counts


def fit_probabilities(scored: Sequence[ScoredConversation]) -> DecisionConfig:
    """Calibrate on `scored`; the decision's constants stay at their defaults."""
    logits = torch.from_numpy(np.concatenate([s.emotion_logits for s in scored])).double()
    emotions = torch.from_numpy(np.concatenate([s.emotions for s in scored]))
    emotional = [s.emotions != 0 for s in scored]
    pair_logits = torch.from_numpy(
        np.concatenate([s.pair_logits[e].ravel() for s, e in zip(scored, emotional, strict=True)])
    ).double()
    causes = torch.from_numpy(
        np.concatenate([s.causes[e].ravel() for s, e in zip(scored, emotional, strict=True)])
    ).double()
    scorable = torch.isfinite(pair_logits)  # a pair that was not scored has no probability to calibrate
    pair_logits, causes = pair_logits[scorable], causes[scorable]
    log_temperature = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(EMOTIONS), dtype=torch.float64, requires_grad=True)
    platt = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature, bias, platt], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        # A little weight decay keeps the bias of a rare or absent emotion finite, and the scales where the scores
        # separate a small `dev` without error.
        loss = F.cross_entropy(logits / log_temperature.exp() + bias, emotions)
        loss = loss + 1e-3 * (bias.square().sum() + log_temperature.square().sum())
        if len(causes):
            loss = loss + F.binary_cross_entropy_with_logits(platt[0] * pair_logits + platt[1], causes)
            loss = loss + 1e-5 * platt.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    values = (bias - bias.mean()).tolist()
    scale, offset = platt.tolist()
    return DecisionConfig(
        emotion_temperature=round(log_temperature.exp().item(), 4),
        emotion_bias=tuple(round(value, 4) for value in values),
        pair_scale=round(scale, 4),
        pair_bias=round(offset, 4),
    )


def weighted_f1(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Compute the weighted F1 over the six emotions.

    counts: int64 (..., 6, 3): correct, predicted and annotated pairs per emotion.
    """
    hits, predicted, gold = (counts[..., i].astype(float) for i in range(3))
    f1 = 2 * hits / np.maximum(predicted + gold, 1)
    return np.asarray((f1 * gold).sum(-1) / np.maximum(gold.sum(-1), 1))


def expected_calibration_error(scored: Sequence[ScoredConversation], config: DecisionConfig, n_bins: int = 15) -> float:
    """Compute the expected calibration error of the likeliest emotion (Guo et al. 2017), equal-width bins."""
    probabilities = np.concatenate([emotion_probabilities(s.emotion_logits, config) for s in scored])
    emotions = np.concatenate([s.emotions for s in scored])
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == emotions
    return _calibration_error(confidence, right, n_bins)


def cause_calibration_error(scored: Sequence[ScoredConversation], config: DecisionConfig, n_bins: int = 15) -> float:
    """Compute the expected calibration error of cause probabilities given the true emotion, equal-width bins."""
    rows = [s.emotions != 0 for s in scored]
    probabilities = [cause_probabilities(s.pair_logits[r], config).ravel() for s, r in zip(scored, rows, strict=True)]
    causes = [s.causes[r].ravel() for s, r in zip(scored, rows, strict=True)]
    return _calibration_error(np.concatenate(probabilities), np.concatenate(causes), n_bins)


def _calibration_error(probabilities: npt.NDArray[np.floating], outcomes: npt.NDArray[np.bool_], n_bins: int) -> float:
    bins = np.minimum((probabilities * n_bins).astype(int), n_bins - 1)
    members = [bins == b for b in range(n_bins)]
    return float(sum(abs(probabilities[m].mean() - outcomes[m].mean()) * m.mean() for m in members if m.any()))
