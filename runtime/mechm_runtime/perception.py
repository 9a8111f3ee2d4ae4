"""Encoders at work: text, voice, faces and frames of a conversation to what the fusion reads.

One class a modality; each gets finished engines and configs and fills its fields of `FusionInputs`. They neither
decode media nor decide anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from mechm_runtime.bundle import FusionWindows
from mechm_runtime.engine import GraphRunner
from mechm_runtime.features.faces import FaceFinder, face_pixels
from mechm_runtime.features.log_mel import LogMelConfig, log_mel_spectrogram
from mechm_runtime.features.scene import SceneConfig, scene_pixels
from mechm_runtime.fusion import FusionInputs
from mechm_runtime.text import ConversationTokenizer, TextWindows, pool_batches
from mechm_runtime.types import Utterance

TEXT_WINDOWS_PER_RUN = 8
MAX_MEL_FRAMES = 3000
"""Whisper's positions reach 30 s; a longer utterance is read in pieces of about equal length."""
MIN_SAMPLES = 400
"""25 ms, one analysis frame: less is no sound to speak of."""


class TextReader:
    """Fills text and text_mask."""

    def __init__(self, tokenizer: ConversationTokenizer, engine: GraphRunner) -> None:
        self._tokenizer = tokenizer
        self._engine = engine

    def read(
        self,
        utterances: Sequence[Utterance],
        inputs: FusionInputs,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Read the words of a conversation.

        progress: called with utterances done and their number, after every few windows.
        """
        windows = self._tokenizer(utterances)
        inputs.text_mask[:] = windows.has_text
        if len(windows.input_ids):
            inputs.text[:] = pool_batches(self._states(windows, progress), windows)

    def _states(
        self, windows: TextWindows, progress: Callable[[int, int], None] | None
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Token states of a few windows at a time: those of a long conversation together take a gigabyte."""
        n_windows = len(windows.input_ids)
        for start in range(0, n_windows, TEXT_WINDOWS_PER_RUN):
            rows = slice(start, start + TEXT_WINDOWS_PER_RUN)
            feeds = {"input_ids": windows.input_ids[rows], "attention_mask": windows.attention_mask[rows]}
            yield self._engine.run(feeds)["last_hidden_state"]
            if progress is not None:
                progress(windows.n_utterances * min(rows.stop, n_windows) // n_windows, windows.n_utterances)


class VoiceReader:
    """Fills audio and audio_mask."""

    def __init__(self, config: LogMelConfig, engine: GraphRunner) -> None:
        self._config = config
        self._engine = engine

    def read(self, index: int, samples: npt.NDArray[np.float32], inputs: FusionInputs) -> str:
        """Read one utterance's voice; returns why it could not be, or an empty string.

        samples: float32 (n,), 16 kHz mono.
        """
        if len(samples) < MIN_SAMPLES:
            return "shorter than 25 ms"
        if not np.any(samples):
            return "digital silence"
        n_pieces = -(-len(samples) // (MAX_MEL_FRAMES * self._config.hop_length))
        pieces = [log_mel_spectrogram(piece, self._config) for piece in np.array_split(samples, n_pieces)]
        tokens = [
            self._engine.run({"mel": mel[None], "mel_frames": np.array([mel.shape[1]], np.int64)})["audio_tokens"][0]
            for mel in pieces
        ]
        inputs.audio[index] = merge_pieces(np.stack(tokens), np.array([mel.shape[1] for mel in pieces], np.float64))
        inputs.audio_mask[index] = True
        return ""


class SceneReader:
    """Fills scene and scene_mask."""

    def __init__(self, config: SceneConfig, engine: GraphRunner, sizes: FusionWindows) -> None:
        self._config = config
        self._engine = engine
        self._sizes = sizes

    def read(self, index: int, frames: npt.NDArray[np.uint8], inputs: FusionInputs) -> None:
        """Read the frames of an utterance as wholes.

        frames: uint8 (n, H, W, 3), RGB; those above the bundle's n_frames are left out.
        """
        kept = frames[: self._sizes.n_frames]
        pixels = np.stack([scene_pixels(frame, self._config) for frame in kept])
        inputs.scene[index, : len(kept)] = self._engine.run({"pixel_values": pixels})["scene_token"]
        inputs.scene_mask[index, : len(kept)] = True


class FaceReader:
    """Fills face and face_mask."""

    def __init__(self, finder: FaceFinder, engine: GraphRunner, sizes: FusionWindows) -> None:
        self._finder = finder
        self._engine = engine
        self._sizes = sizes

    def read(self, index: int, frames: npt.NDArray[np.uint8], inputs: FusionInputs) -> str:
        """Read the faces in the frames of an utterance; returns why there are none, or an empty string.

        frames: uint8 (n, H, W, 3), RGB; those above the bundle's n_frames are left out.
        """
        crops, heights = [], []
        for frame in frames[: self._sizes.n_frames]:
            for face in self._finder.find(frame)[: self._sizes.max_faces]:
                crops.append(face_pixels(frame, face.box_px, self._finder.config))
                heights.append(face.box_px[3] / frame.shape[0])
        if not crops:
            return "no face found"
        logits = self._engine.run({"pixel_values": np.stack(crops)})["expression_logits"]
        exponential = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities = exponential / exponential.sum(-1, keepdims=True)
        inputs.face[index, : len(crops)] = np.concatenate([probabilities, np.array(heights)[:, None]], -1)
        inputs.face_mask[index, : len(crops)] = True
        return ""


def merge_pieces(tokens: npt.NDArray[np.float32], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Mean and deviation over all pieces of an utterance from each piece's own.

    tokens: float32 (pieces, audio tokens, 2 * D), mean then standard deviation. weights: (pieces,), their lengths.
    Returns: float32 (audio tokens, 2 * D).
    """
    share = (weights / weights.sum())[:, None, None]
    means, deviations = np.split(tokens.astype(np.float64), 2, -1)
    mean = (means * share).sum(0)
    variance = ((deviations**2 + (means - mean) ** 2) * share).sum(0)
    return np.concatenate([mean, np.sqrt(variance)], -1).astype(np.float32)
