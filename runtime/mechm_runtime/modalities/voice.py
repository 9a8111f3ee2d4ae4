"""Speech encoder: the voice of an utterance to audio tokens, in pieces of at most 30 s."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mechm_runtime.bundle.config import LogMelConfig
from mechm_runtime.bundle.manifest import Bundle
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.fusion.inputs import FusionInputs
from mechm_runtime.modalities.log_mel import log_mel_spectrogram
from mechm_runtime.system.arrays import Float32Array
from mechm_runtime.system.time_limit import OutOfTimeError, check_time, current_limit

MAX_MEL_FRAMES = 3000
"""Whisper's positions reach 30 s; a longer utterance is encoded in pieces of about equal length."""
MIN_SAMPLES = 400
"""25 ms, one analysis window; shorter sounds are not encoded."""


@dataclass(frozen=True, slots=True)
class VoicePiece:
    """One encoded piece of a voice.

    tokens: float32 (audio tokens, 2 * D), means, then standard deviations over time. n_frames: columns of its
    spectrogram.
    """

    tokens: Float32Array
    n_frames: int


def unusable_reason(samples: Float32Array) -> str:
    """Why samples cannot be encoded as a voice, or an empty string.

    samples: float32 (n,), 16 kHz mono.
    """
    if len(samples) < MIN_SAMPLES:
        return "shorter than 25 ms"
    return "" if np.any(samples) else "digital silence"


class VoiceEncoder:
    """Fills `audio` and `audio_mask`."""

    def __init__(self, config: LogMelConfig, engine: GraphRunner) -> None:
        self._config = config
        self._engine = engine

    @classmethod
    def from_bundle(cls, bundle: Bundle, load: Callable[[str], GraphRunner]) -> VoiceEncoder:
        """Build the encoder; `load` gives the engine of a part."""
        return cls(bundle.log_mel, load("audio"))

    def encode(self, index: int, samples: Float32Array, inputs: FusionInputs) -> str:
        """Encode the voice of an utterance; returns why that is impossible in part or as a whole, or an empty string.

        index: position of the utterance. samples: float32 (n,), 16 kHz mono, in [-1, 1].
        Raises: OutOfTimeError: the request's time limit passed before the first piece; after a later one, the pieces
            so far are used.
        """
        reason = unusable_reason(samples)
        if reason:
            return reason
        n_pieces = -(-len(samples) // (MAX_MEL_FRAMES * self._config.hop_length))
        pieces, n_heard = [], 0
        try:
            for piece in np.array_split(samples, n_pieces):
                check_time()
                pieces.append(self.encode_piece(piece))
                n_heard += len(piece)
        except OutOfTimeError:
            limit = current_limit()
            if not pieces or limit is None:
                raise
            reason = f"its voice after {n_heard / self._config.sample_rate:.0f} s: {limit.reason}"
        inputs.audio[index] = merge_pieces(pieces)
        inputs.audio_mask[index] = True
        return reason

    def encode_piece(self, samples: Float32Array) -> VoicePiece:
        """Encode one piece of a voice.

        samples: float32 (n,), 16 kHz mono, 25 ms to 30 s.
        """
        mel = log_mel_spectrogram(samples, self._config)
        outputs = self._engine.run({"mel": mel[None], "mel_frames": np.array([mel.shape[1]], np.int64)})
        return VoicePiece(outputs["audio_tokens"][0], mel.shape[1])


def merge_pieces(pieces: Sequence[VoicePiece]) -> Float32Array:
    """Mean and standard deviation over all pieces of an utterance, computed from those of each piece.

    Returns: float32 (audio tokens, 2 * D).
    """
    weights = np.array([piece.n_frames for piece in pieces], np.float64)
    share = (weights / weights.sum())[:, None, None]
    means, deviations = np.split(np.stack([piece.tokens for piece in pieces]).astype(np.float64), 2, -1)
    mean = (means * share).sum(0)
    variance = ((deviations**2 + (means - mean) ** 2) * share).sum(0)
    return np.concatenate([mean, np.sqrt(variance)], -1).astype(np.float32)
