"""Speech encoder: the voice of an utterance to audio tokens, in pieces of at most 30 s."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mechm_runtime.bundle.config import LogMelConfig
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.fusion.inputs import FusionInputs
from mechm_runtime.modalities.log_mel import log_mel_spectrogram

MAX_MEL_FRAMES = 3000
"""Whisper's positions reach 30 s; a longer utterance is read in pieces of about equal length."""
MIN_SAMPLES = 400
"""25 ms, one analysis frame: less is no sound to speak of."""


@dataclass(frozen=True, slots=True)
class VoicePiece:
    """A piece of a voice, read. tokens: float32 (audio tokens, 2 * D), mean then deviation. n_frames: its length."""

    tokens: npt.NDArray[np.float32]
    n_frames: int


def unreadable(samples: npt.NDArray[np.float32]) -> str:
    """Why samples are no voice that could be read, or an empty string."""
    if len(samples) < MIN_SAMPLES:
        return "shorter than 25 ms"
    return "" if np.any(samples) else "digital silence"


class VoiceReader:
    """Fills audio and audio_mask."""

    def __init__(self, config: LogMelConfig, engine: GraphRunner) -> None:
        self._config = config
        self._engine = engine

    def read(self, index: int, samples: npt.NDArray[np.float32], inputs: FusionInputs) -> str:
        """Read one utterance's voice; returns why it could not be, or an empty string.

        samples: float32 (n,), 16 kHz mono.
        """
        reason = unreadable(samples)
        if not reason:
            n_pieces = -(-len(samples) // (MAX_MEL_FRAMES * self._config.hop_length))
            pieces = [self.piece(piece) for piece in np.array_split(samples, n_pieces)]
            inputs.audio[index] = merge_pieces(pieces)
            inputs.audio_mask[index] = True
        return reason

    def piece(self, samples: npt.NDArray[np.float32]) -> VoicePiece:
        """Read a piece of a voice.

        samples: float32 (n,), 16 kHz mono, 25 ms to 30 s.
        """
        mel = log_mel_spectrogram(samples, self._config)
        outputs = self._engine.run({"mel": mel[None], "mel_frames": np.array([mel.shape[1]], np.int64)})
        return VoicePiece(outputs["audio_tokens"][0], mel.shape[1])


def merge_pieces(pieces: Sequence[VoicePiece]) -> npt.NDArray[np.float32]:
    """Mean and deviation over all pieces of an utterance from each piece's own.

    Returns: float32 (audio tokens, 2 * D).
    """
    weights = np.array([piece.n_frames for piece in pieces], np.float64)
    share = (weights / weights.sum())[:, None, None]
    means, deviations = np.split(np.stack([piece.tokens for piece in pieces]).astype(np.float64), 2, -1)
    mean = (means * share).sum(0)
    variance = ((deviations**2 + (means - mean) ** 2) * share).sum(0)
    return np.concatenate([mean, np.sqrt(variance)], -1).astype(np.float32)
