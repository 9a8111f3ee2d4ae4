"""Features of emotional speech for the fusion's audio branch, and their cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mechm.data.corpora import SpeechRecording
from mechm_runtime.errors import MediaError
from mechm_runtime.features.log_mel import log_mel_spectrogram
from mechm_runtime.media import MediaReader


def speech_features(
    recordings: Sequence[SpeechRecording], encoder: nn.Module, progress: Callable[[int, int], None] | None = None
) -> npt.NDArray[np.float32]:
    """Audio tokens of recordings, each at its own length.

    recordings: at least one. encoder: reads log-mel frames (`WhisperAudioEncoder`), on the CPU.
    Returns: float32 (recordings, audio tokens, audio width), as the runtime's pipeline computes them; of a recording
        longer than 30 s the start.
    Raises: MediaError: a recording cannot be read or holds no sound.
    """
    features = []
    with MediaReader() as reader:
        for done, recording in enumerate(recordings, 1):
            segment = reader.read_segments(recording.path, [(0.0, 30.0)], n_frames=0).segments[0]
            if segment.samples is None:
                raise MediaError(f"{recording.path.name}: {segment.missing['audio']}")
            mel = torch.from_numpy(log_mel_spectrogram(segment.samples))[None]
            with torch.inference_mode():
                features.append(encoder(mel, torch.tensor([mel.shape[-1]]))[0].numpy())
            if progress is not None:
                progress(done, len(recordings))
    return np.stack(features)
