"""Fits the weights of the fusion and the Llama in their combination, on conversations that neither was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from mechm.training.calibration import F1_NOISE, ScoredConversation, fit_decision, pair_counts, weighted_f1
from mechm_runtime.bundle.config import CombinationConfig, DecisionConfig
from mechm_runtime.fusion.combination import combine
from mechm_runtime.fusion.decision import decide, emotion_probabilities, recalibrated
from mechm_runtime.types import EMOTIONS

SHARES = tuple(round(0.1 * i, 1) for i in range(11))
"""Candidate shares of the Llama in the sum of both models' weights."""

EXIT_BOUNDS = tuple(round(0.99 - 0.01 * i, 2) for i in range(60))
"""Candidate probabilities of the fusion's likeliest emotion from which on the Llama is not asked (early exit)."""


def fit_combination(fusion: Sequence[ScoredConversation], llama: Sequence[ScoredConversation]) -> CombinationConfig:
    """Fit the weights that minimise the negative log-likelihood of emotions and, given the emotion, of causes.

    fusion, llama: both models' scores of the same conversations in the same order.
    Raises: ValueError: they are not of the same conversations.
    """
    if [s.emotions.tolist() for s in fusion] != [s.emotions.tolist() for s in llama]:
        raise ValueError("the fusion and the Llama scored different conversations")
    emotional = [s.emotions != 0 for s in fusion]
    emotions = torch.from_numpy(np.concatenate([s.emotions for s in fusion]))
    both = [
        torch.from_numpy(np.concatenate([s.emotion_logits for s in scored])).double().log_softmax(-1)
        for scored in (fusion, llama)
    ]
    pairs = [
        torch.from_numpy(
            np.concatenate([s.pair_logits[e].ravel() for s, e in zip(scored, emotional, strict=True)])
        ).double()
        for scored in (fusion, llama)
    ]
    causes = torch.from_numpy(
        np.concatenate([s.causes[e].ravel() for s, e in zip(fusion, emotional, strict=True)])
    ).double()
    asked = torch.isfinite(pairs[1])
    emotion = torch.full((2,), 0.5, dtype=torch.float64, requires_grad=True)
    emotion_bias = torch.zeros(len(EMOTIONS), dtype=torch.float64, requires_grad=True)
    pair = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64, requires_grad=True)
    alone = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([emotion, emotion_bias, pair, alone], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        # Biases keep the weights from compensating for class frequencies; `fit_decision` fits its own.
        loss = F.cross_entropy(emotion[0] * both[0] + emotion[1] * both[1] + emotion_bias, emotions)
        # A little weight decay keeps the scales finite where the scores separate a small `dev` without error.
        loss = loss + 1e-3 * (emotion.square().sum() + emotion_bias.square().sum())
        if asked.any():
            odds = pair[0] * pairs[0][asked] + pair[1] * pairs[1][asked] + pair[2]
            loss = loss + F.binary_cross_entropy_with_logits(odds, causes[asked])
        if (~asked).any():
            loss = loss + F.binary_cross_entropy_with_logits(alone[0] * pairs[0][~asked] + alone[1], causes[~asked])
        loss = loss + 1e-5 * (pair.square().sum() + alone.square().sum())
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return CombinationConfig(*(round(value, 4) for value in (*emotion.tolist(), *pair.tolist(), *alone.tolist())))


def choose_shares(
    fusion: Sequence[ScoredConversation], llama: Sequence[ScoredConversation], config: CombinationConfig
) -> CombinationConfig:
    """Shift weight between the two models where that improves the task's F1, in cross-validation on `dev`.

    The likeliest weights do not maximise F1, which depends on few utterances of rare emotions. Since F1 is noisy, it is
    averaged over neighbouring shares, and of the shares within `F1_NOISE` of the best the one nearest to the likeliest
    is chosen. The emotions' weights are chosen first, then the causes'; their sums stay.
    fusion, llama: as for `fit_combination`, which made `config`.
    """
    for kind in ("emotion", "pair"):
        names = (f"{kind}_fusion", f"{kind}_llama")
        of_fusion, of_llama = (getattr(config, name) for name in names)
        total = of_fusion + of_llama
        candidates = [
            replace(config, **{names[0]: round(total * (1 - share), 4), names[1]: round(total * share, 4)})
            for share in SHARES
        ]
        f1 = np.array([cross_validated_f1(combined(fusion, llama, one)) for one in candidates])
        padded = np.pad(f1, 1, mode="edge")
        smooth = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
        likeliest = of_llama / total if total else 0.5
        nearest = sorted(range(len(SHARES)), key=lambda at: abs(SHARES[at] - likeliest))
        config = next(candidates[at] for at in nearest if smooth[at] >= smooth.max() - F1_NOISE)
    return config


def choose_asked_below(
    fusion: Sequence[ScoredConversation],
    both: Sequence[ScoredConversation],
    own: DecisionConfig,
    decision: DecisionConfig,
) -> float:
    """Find the lowest probability of the fusion's likeliest emotion from which on the Llama need not be asked.

    At this bound and all above it, weighted F1 and emotion accuracy stay within `F1_NOISE` of always asking.
    fusion, both: the fusion's scores and the combined ones of the same conversations in the same order.
    own, decision: decision constants of the fusion and of the combination.
    """

    def reached(asked_below: float) -> npt.NDArray[np.float64]:
        scored = [
            with_early_exit(one, other, own, decision, asked_below) for one, other in zip(fusion, both, strict=True)
        ]
        f1 = float(weighted_f1(pair_counts(scored, decision, (decision.pair_threshold,))[0]))
        labels = np.concatenate([decide(one.emotion_logits, one.pair_logits, decision).labels for one in scored])
        return np.array([f1, (labels == np.concatenate([one.emotions for one in scored])).mean()])

    always = reached(1.0)
    chosen = 1.0
    for bound in EXIT_BOUNDS:
        if (reached(bound) < always - F1_NOISE).any():
            break
        chosen = bound
    return chosen


def with_early_exit(
    fusion: ScoredConversation,
    both: ScoredConversation,
    own: DecisionConfig,
    decision: DecisionConfig,
    asked_below: float,
) -> ScoredConversation:
    """Return combined scores, with the fusion's own where it is sure, as `mechm_runtime.llm.rescoring` does."""
    if asked_below >= 1.0:
        return both
    sure = emotion_probabilities(fusion.emotion_logits, own).max(-1) >= asked_below
    emotions, pairs = both.emotion_logits.copy(), both.pair_logits.copy()
    emotions[sure], pairs[sure] = recalibrated(fusion.emotion_logits[sure], fusion.pair_logits[sure], own, decision)
    return replace(both, emotion_logits=emotions, pair_logits=pairs)


def cross_validated_f1(scored: Sequence[ScoredConversation], n_folds: int = 5) -> float:
    """Compute weighted F1, with each fold's decision constants fitted on the other folds."""
    counts = np.zeros((len(EMOTIONS) - 1, 3), np.int64)
    for fold in range(min(n_folds, len(scored))):
        decision = fit_decision([one for i, one in enumerate(scored) if i % n_folds != fold])
        counts += pair_counts(scored[fold::n_folds], decision, (decision.pair_threshold,))[0]
    return float(weighted_f1(counts))


def combined(
    fusion: Sequence[ScoredConversation], llama: Sequence[ScoredConversation], config: CombinationConfig
) -> list[ScoredConversation]:
    """Combine both models' scores of the same conversations, in the same order."""
    result = []
    for one, other in zip(fusion, llama, strict=True):
        emotions, pairs = combine(
            (one.emotion_logits, one.pair_logits), (other.emotion_logits, other.pair_logits), config
        )
        result.append(replace(one, emotion_logits=emotions, pair_logits=pairs))
    return result
