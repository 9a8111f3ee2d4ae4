"""Combines the scores of the fusion and of the Llama, whose errors differ.

Log-probabilities of the emotions and log-odds of the causes are added with weights (a logarithmic opinion pool:
Genest and Zidek 1986). The weights are fitted on `dev` by `mechm.training.combination`; the result is calibrated and
decided by `mechm_runtime.fusion.decision` as the fusion's own scores are.
"""

from __future__ import annotations

import numpy as np

from mechm_runtime.bundle.config import CombinationConfig
from mechm_runtime.system.arrays import Float32Array, log_softmax


def combine(
    fusion: tuple[Float32Array, Float32Array],
    llama: tuple[Float32Array, Float32Array],
    config: CombinationConfig,
) -> tuple[Float32Array, Float32Array]:
    """Combine the scores of one conversation.

    fusion, llama: emotion logits float32 (U, 7) and pair logits float32 (U, W); -inf is a pair that was not scored.
    Returns: emotion log-scores float32 (U, 7) and pair logits float32 (U, W).
    Raises: ValueError: the shapes differ, or a pair's logit is NaN or infinite upwards.
    """
    if fusion[0].shape != llama[0].shape or fusion[1].shape != llama[1].shape:
        raise ValueError(f"{[one.shape for one in fusion]} of the fusion, {[one.shape for one in llama]} of the Llama")
    if not all((np.isfinite(one) | np.isneginf(one)).all() for one in (*fusion, *llama)):
        raise ValueError("a score is not a number")
    fusion_log, llama_log = (log_softmax(scores.astype(np.float64)) for scores in (fusion[0], llama[0]))
    emotions = config.emotion_fusion * fusion_log + config.emotion_llama * llama_log
    scored = np.isfinite(llama[1])
    answered = np.where(scored, llama[1], 0.0)
    both = config.pair_fusion * fusion[1] + config.pair_llama * answered + config.pair_bias
    pairs = np.where(scored, both, config.pair_alone * fusion[1] + config.pair_bias_alone)
    return emotions.astype(np.float32), np.where(np.isneginf(fusion[1]), -np.inf, pairs).astype(np.float32)
