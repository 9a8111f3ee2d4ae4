"""One set of scores from the fusion's and the Llama's, which err in different places.

Log-probabilities of the emotions and log-odds of the causes are weighed and added (a logarithmic opinion pool:
Genest and Zidek 1986). The weights are fitted on `dev` by `mechm.training.combination`; the result is calibrated and
decided by `mechm_runtime.fusion.decision` as the fusion's own scores are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mechm_runtime.bundle.config import CombinationConfig

Scores = npt.NDArray[np.float32]


def combine(
    fusion: tuple[Scores, Scores],
    llama: tuple[Scores, Scores],
    config: CombinationConfig,
) -> tuple[Scores, Scores]:
    """Combined scores of one conversation.

    fusion, llama: emotion logits float32 (U, 7) and pair logits float32 (U, W); -inf is a pair that was not scored.
    Returns: emotion log-scores float32 (U, 7) and pair logits float32 (U, W).
    Raises: ValueError: the shapes differ, or a pair's logit is NaN or infinite upwards.
    """
    if fusion[0].shape != llama[0].shape or fusion[1].shape != llama[1].shape:
        raise ValueError(f"{[one.shape for one in fusion]} of the fusion, {[one.shape for one in llama]} of the Llama")
    if not all((np.isfinite(one) | np.isneginf(one)).all() for one in (*fusion, *llama)):
        raise ValueError("a score is not a number")
    emotions = config.emotion_fusion * _log_softmax(fusion[0]) + config.emotion_llama * _log_softmax(llama[0])
    scored = np.isfinite(llama[1])
    answered = np.where(scored, llama[1], 0.0)
    both = config.pair_fusion * fusion[1] + config.pair_llama * answered + config.pair_bias
    pairs = np.where(scored, both, config.pair_alone * fusion[1] + config.pair_bias_alone)
    return emotions.astype(np.float32), np.where(np.isneginf(fusion[1]), -np.inf, pairs).astype(np.float32)


def _log_softmax(logits: Scores) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))
