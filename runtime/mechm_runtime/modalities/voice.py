"""Encoders at work: text, voice, faces and frames of a conversation to what the fusion reads.

One class a modality; each gets finished engines and configs and fills its fields of `FusionInputs`. They neither
decode media nor decide anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mechm_runtime.bundle.open import FusionWindows
from mechm_runtime.engines.onnxruntime_engine import GraphRunner
from mechm_runtime.fusion.run import FusionInputs
from mechm_runtime.modalities.face_detection import FaceFinder, face_pixels
from mechm_runtime.modalities.frame_pixels import SceneConfig, scene_pixels
from mechm_runtime.modalities.log_mel import LogMelConfig, log_mel_spectrogram
from mechm_runtime.modalities.text_windows import ConversationTokenizer, TextWindows, pool_batches
from mechm_runtime.types import Utterance

TEXT_WINDOWS_PER_RUN = 8
MAX_MEL_FRAMES = 3000
"""Whisper's positions reach 30 s; a longer utterance is read in pieces of about equal length."""
NO_FACE = "no face found"
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

    def n_tokens(self, utterance: Utterance) -> int:
        """How many tokens an utterance is read as; 0 where it has no words."""
        return int((self._tokenizer([utterance]).utterance_index == 0).sum())

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
        inputs.scene[index, : len(kept)] = self.tokens(kept)
        inputs.scene_mask[index, : len(kept)] = True

    def tokens(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 (n, H, W, 3), RGB -> float32 (n, D)."""
        pixels = np.stack([scene_pixels(frame, self._config) for frame in frames])
        return np.asarray(self._engine.run({"pixel_values": pixels})["scene_token"])


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
        faces = self.tokens(frames[: self._sizes.n_frames])
        inputs.face[index, : len(faces)] = faces
        inputs.face_mask[index, : len(faces)] = True
        return "" if len(faces) else NO_FACE

    def tokens(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """What the faces in some frames show.

        frames: uint8 (n, H, W, 3), RGB.
        Returns: float32 (faces, face width), at most `max_faces` a frame.
        """
        crops, heights = [], []
        for frame in frames:
            for face in self._finder.find(frame)[: self._sizes.max_faces]:
                crops.append(face_pixels(frame, face.box_px, self._finder.config))
                heights.append(face.box_px[3] / frame.shape[0])
        if not crops:
            return np.zeros((0, self._sizes.face_width), np.float32)
        logits = self._engine.run({"pixel_values": np.stack(crops)})["expression_logits"]
        exponential = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities = exponential / exponential.sum(-1, keepdims=True)
        return np.concatenate([probabilities, np.array(heights, np.float32)[:, None]], -1)


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
