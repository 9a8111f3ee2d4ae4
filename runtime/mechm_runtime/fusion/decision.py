"""Turns scores into calibrated probabilities, labels and pairs.

Probabilities are calibrated; decisions are made for the metric (SemEval-2024 Task 3: weighted F1 over emotional
pairs), so a decision may prefer an emotion over a slightly likelier neutral. Both sets of constants are fitted on
`dev` by `mechm.training.calibration` and travel in the bundle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mechm_runtime.bundle.config import DecisionConfig
from mechm_runtime.system.arrays import BoolArray, FloatArray, Int64Array, softmax


@dataclass(frozen=True, slots=True)
class Decision:
    """Labels and pairs of a conversation.

    probabilities: float64 (U, 7). labels: int64 (U,), index into EMOTIONS, -1 for an abstention.
    pairs: (emotion position, cause position, probability), positions from 0, in order.
    """

    probabilities: FloatArray
    labels: Int64Array
    pairs: tuple[tuple[int, int, float], ...]

    def without(self, unread: BoolArray) -> Decision:
        """The decision with an abstention for some utterances, and without their pairs.

        unread: bool (U,), those of which nothing is known.
        """
        if not unread.any():
            return self
        pairs = tuple(pair for pair in self.pairs if not (unread[pair[0]] or unread[pair[1]]))
        return Decision(self.probabilities, np.where(unread, -1, self.labels), pairs)


def emotion_probabilities(logits: FloatArray, config: DecisionConfig) -> FloatArray:
    """logits float (..., 7) -> float64 (..., 7), calibrated."""
    scaled = logits.astype(np.float64) / config.emotion_temperature + np.asarray(config.emotion_bias)
    return softmax(scaled)


def emotion_logits_of(probabilities: FloatArray, config: DecisionConfig) -> FloatArray:
    """Inverse of `emotion_probabilities`: logits that this calibration turns into these probabilities.

    probabilities: float (..., 7). Returns: float64 (..., 7).
    """
    logs = np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float64).tiny))
    return np.asarray((logs - np.asarray(config.emotion_bias)) * config.emotion_temperature)


def cause_probabilities(logits: FloatArray, config: DecisionConfig) -> FloatArray:
    """logits float (...) -> float64 (...), the probability of being a cause, given the emotion.

    It is 0 where the logit is -inf, whatever the calibration: that pair was not scored.
    """
    unscored = np.isneginf(logits)
    raw = np.where(unscored, 0.0, logits).astype(np.float64)
    scaled = np.clip(config.pair_scale * raw + config.pair_bias, -60.0, 60.0)
    return np.where(unscored, 0.0, 1.0 / (1.0 + np.exp(-scaled)))


def pair_logits_of(probabilities: FloatArray, config: DecisionConfig) -> FloatArray:
    """Inverse of `cause_probabilities`: logits that this calibration turns into these probabilities.

    probabilities: float (...). Returns: float64 (...), -inf where the probability is 0; and 0 for a calibration that
    gives all logits the same probability.
    """
    unscored = probabilities <= 0.0
    inside = np.clip(np.where(unscored, 0.5, probabilities), np.finfo(np.float64).tiny, 1.0 - 1e-16)
    odds = np.log(inside) - np.log1p(-inside)
    logits = (odds - config.pair_bias) / config.pair_scale if config.pair_scale else np.zeros_like(odds)
    return np.where(unscored, -np.inf, logits)


def recalibrated(
    emotion_logits: FloatArray, pair_logits: FloatArray, before: DecisionConfig, after: DecisionConfig
) -> tuple[FloatArray, FloatArray]:
    """Convert scores between calibrations: the results have in `after` the probabilities that these have in `before`.

    emotion_logits: float (..., 7). pair_logits: float (..., W), -inf where a pair was not scored.
    Returns: both, float64.
    """
    return (
        emotion_logits_of(emotion_probabilities(emotion_logits, before), after),
        pair_logits_of(cause_probabilities(pair_logits, before), after),
    )


def decide(
    emotion_logits: FloatArray,
    pair_logits: FloatArray,
    config: DecisionConfig,
    first_cause: Int64Array | None = None,
    has_text: BoolArray | None = None,
) -> Decision:
    """Decide the labels and pairs of a conversation.

    emotion_logits: float (U, 7). pair_logits: float (U, W), -inf where a pair was not scored.
    first_cause: int64 (U,), the position of the utterance in column 0 of each row of `pair_logits`; None for 0
        everywhere.
    has_text: bool (U,), utterances whose words are known; None for all. `neutral_log_bias` was fitted on words and is
        not added for an utterance without them.
    """
    probabilities = emotion_probabilities(emotion_logits, config)
    preference = np.log(np.maximum(probabilities, 1e-12))
    preference[:, 0] += (
        config.neutral_log_bias if has_text is None else np.where(has_text, config.neutral_log_bias, 0.0)
    )
    labels = preference.argmax(-1)
    labels[probabilities.max(-1) < config.abstain_below] = -1
    # Only emotional utterances have causes, so only their rows are computed.
    rows = np.flatnonzero(labels > 0)
    joint = cause_probabilities(pair_logits[rows], config) * probabilities[rows, labels[rows]][:, None]
    where = np.argwhere(joint >= config.pair_threshold)
    offsets = np.zeros(len(labels), np.int64) if first_cause is None else first_cause
    pairs = tuple((int(rows[i]), int(j + offsets[rows[i]]), float(joint[i, j])) for i, j in where)
    return Decision(probabilities, labels.astype(np.int64), pairs)
