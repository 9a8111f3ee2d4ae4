"""Constants of preprocessing and decision that a bundle carries: frozen dataclasses, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import asdict, astuple, dataclass, replace

from mechm_runtime.errors import InputError
from mechm_runtime.types import EMOTIONS


@dataclass(frozen=True, slots=True)
class TextConfig:
    """Windows into which text is cut.

    max_tokens: longest window the encoder takes, `[CLS]` included (MPNet calls it `<s>`).
    context_tokens: tokens of context on each side of a window's core, where the conversation needs several windows.
    """

    max_tokens: int = 512
    context_tokens: int = 128

    def __post_init__(self) -> None:
        if self.max_tokens - 1 <= 2 * self.context_tokens:
            raise ValueError(f"context_tokens={self.context_tokens} leaves no core in max_tokens={self.max_tokens}")


@dataclass(frozen=True, slots=True)
class LogMelConfig:
    """The constants of the spectrogram; the defaults are Whisper's.

    n_fft: samples of the analysis window (25 ms) and of its Fourier transform.
    hop_length: samples between two windows (10 ms).
    dynamic_range: lowest value, in powers of ten below the recording's loudest; quieter values are raised to it.
    offset, scale: the logarithm is shifted and divided by these, to lie about in [-1, 1].

    Raises: InputError: a constant that is not above zero, or a window shorter than a hop.
    """

    sample_rate: int = 16_000
    n_fft: int = 400
    hop_length: int = 160
    n_mels: int = 80
    dynamic_range: float = 8.0
    offset: float = 4.0
    scale: float = 4.0

    def __post_init__(self) -> None:
        if min(self.sample_rate, self.n_fft, self.hop_length, self.n_mels, self.scale) <= 0:
            raise InputError("a log-mel spectrogram needs constants above zero")
        if self.hop_length > self.n_fft:
            raise InputError(f"a hop of {self.hop_length} samples skips some between windows of {self.n_fft}")

    @property
    def frames_per_second(self) -> float:
        """Columns of the spectrogram per second of sound."""
        return self.sample_rate / self.hop_length


@dataclass(frozen=True, slots=True)
class SceneConfig:
    """The constants of the preprocessing; the defaults are facebook/dinov2-small's.

    shortest_edge: pixels to which the frame's shorter side is scaled (bicubic).
    image_size: pixels of the square cut from the middle.
    mean, std: of ImageNet's red, green and blue, for values in [0, 1].

    Raises: InputError: a square that the scaled frame does not hold, or a deviation of zero.
    """

    shortest_edge: int = 256
    image_size: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if not 0 < self.image_size <= self.shortest_edge:
            raise InputError(f"a square of {self.image_size} pixels does not fit into {self.shortest_edge}")
        if min(self.std) <= 0:
            raise InputError("a deviation of zero or less cannot be divided by")


SIDE_MULTIPLE = 32  # the network's largest stride: smaller frames leave it nothing to look at


@dataclass(frozen=True, slots=True)
class FaceConfig:
    """Thresholds of face detection, and the margin that is cut out around a face.

    max_faces: of those found, so many of the largest are kept.
    min_score: detections below are dropped. Measured on group photographs and a phone video at `detection_side` 480:
        every face scored 0.87 or more, the only false alarm 0.62.
    detection_side: pixels to which a larger frame's longer side is scaled for the search; the network takes 2.4 ms at
        480 and 4.3 at 640 (`benchmarks/second_thread.py`, one thread of an Intel Xeon).
    min_side_px: faces whose box has a shorter side in the frame are dropped: they hold no expression.
    overlap: intersection over union above which two detections are one face.
    margin: added on every side of the squared box, as a part of its side (fer adds 10 pixels to about 100).

    Raises: InputError: a value out of its range.
    """

    max_faces: int = 4
    min_score: float = 0.75
    detection_side: int = 480
    min_side_px: int = 16
    overlap: float = 0.3
    margin: float = 0.1

    def __post_init__(self) -> None:
        if self.max_faces < 1 or self.min_side_px < 1 or self.detection_side < SIDE_MULTIPLE:
            raise InputError("face finding needs at least one face, one pixel and a frame of 32 pixels")
        if not (0 < self.min_score < 1 and 0 < self.overlap < 1 and 0 <= self.margin <= 1):
            raise InputError("min_score, overlap and margin of a FaceConfig lie between 0 and 1")


@dataclass(frozen=True, slots=True)
class FusionWindows:
    """Windows in which the fusion reads a conversation, and the shapes of its inputs.

    window, window_context: utterances per window, and how many of them on each side of its core are context.
    n_frames, max_faces: frames per utterance, and faces per frame.
    audio_tokens, audio_width, scene_width, text_width, face_width: sizes of its inputs.
    """

    window: int
    window_context: int
    n_frames: int
    max_faces: int
    audio_tokens: int
    audio_width: int
    scene_width: int
    text_width: int
    face_width: int

    def __post_init__(self) -> None:
        if min(asdict(self).values()) < 1 or self.window <= 2 * self.window_context:
            raise ValueError("sizes must be positive, and a window wider than its context")


@dataclass(frozen=True, slots=True)
class QuestionConfig:
    """Windows into which a conversation is cut for the Llama.

    max_tokens: of one forward pass, questions included; attention's memory grows with its square.
    context_before, context_after: utterances around a window's core, where a conversation needs several windows. Causes
        up to nine turns back have an answer.
    max_utterance_tokens: of an utterance's line; of a longer one the start and the end are kept.
    soft_tokens: per utterance with sound or pictures; 0 for a Llama that reads text alone.
    """

    max_tokens: int = 2048
    context_before: int = 12
    context_after: int = 3
    max_utterance_tokens: int = 256
    soft_tokens: int = 0

    def __post_init__(self) -> None:
        if min(self.max_tokens, self.context_before + 1, self.context_after + 1, self.max_utterance_tokens) < 1:
            raise ValueError("a size of the Llama's windows is not positive")
        if self.soft_tokens < 0:
            raise ValueError(f"soft_tokens={self.soft_tokens} is negative")


@dataclass(frozen=True, slots=True)
class CombinationConfig:
    """Weights with which the scores of the fusion and the Llama are added.

    emotion_fusion, emotion_llama: of their log-probabilities. pair_fusion, pair_llama: of their log-odds.
    pair_bias: added to the log-odds of pairs that both have scored.
    pair_alone, pair_bias_alone: scale and offset of the fusion's log-odds where the Llama has scored no pair.
    asked_below: the Llama is asked about utterances whose likeliest emotion has less than this probability in the
        fusion; 1 for all.
    """

    emotion_fusion: float = 0.5
    emotion_llama: float = 0.5
    pair_fusion: float = 0.5
    pair_llama: float = 0.5
    pair_bias: float = 0.0
    pair_alone: float = 1.0
    pair_bias_alone: float = 0.0
    asked_below: float = 1.0

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, astuple(self))):
            raise ValueError("a weight of the combination is not finite")
        if not 0.0 <= self.asked_below <= 1.0:
            raise ValueError(f"asked_below={self.asked_below} is not a probability")


@dataclass(frozen=True, slots=True)
class DecisionConfig:
    """Constants of calibration and decision.

    emotion_temperature, emotion_bias: probabilities are softmax(logits / temperature + bias).
    pair_scale, pair_bias: a cause's probability, given its emotion, is sigmoid(scale * logit + bias) (Platt 1999).
    neutral_log_bias: added to neutral's log-probability before the label is decided.
    pair_threshold: a pair is reported from this probability on (emotion's times cause's).
    abstain_below: no label where the likeliest emotion is less probable than this.
    """

    emotion_temperature: float = 1.0
    emotion_bias: tuple[float, ...] = (0.0,) * len(EMOTIONS)
    pair_scale: float = 1.0
    pair_bias: float = 0.0
    neutral_log_bias: float = 0.0
    pair_threshold: float = 0.25
    abstain_below: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.emotion_temperature < math.inf:
            raise ValueError(f"emotion_temperature={self.emotion_temperature} is not a positive number")
        if not 0 < self.pair_threshold <= 1:
            raise ValueError(f"pair_threshold={self.pair_threshold} is not in (0, 1]")
        constants = (self.pair_scale, self.pair_bias, self.neutral_log_bias, self.abstain_below)
        if not all(map(math.isfinite, (*self.emotion_bias, *constants))):
            raise ValueError("a constant of calibration or decision is not finite")
        if len(self.emotion_bias) != len(EMOTIONS):
            raise ValueError(f"emotion_bias has {len(self.emotion_bias)} values, not {len(EMOTIONS)}")

    def with_threshold(self, *, neutral_log_bias: float, pair_threshold: float) -> DecisionConfig:
        """A copy with other decision constants and the same calibration."""
        return replace(self, neutral_log_bias=neutral_log_bias, pair_threshold=pair_threshold)
