"""Features of emotional speech for the fusion's audio branch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mechm.data.corpora import SpeechRecording
from mechm.model.fusion import Fusion
from mechm_runtime.errors import MediaError
from mechm_runtime.features.log_mel import log_mel_spectrogram
from mechm_runtime.media import MediaReader

MAX_RECORDING_S = 30.0


def speech_features(recordings: Iterable[SpeechRecording], encoder: nn.Module) -> Iterator[npt.NDArray[np.float32]]:
    """Audio tokens of recordings, one by one, each at its own length as the runtime's pipeline computes them.

    Yields: float32 (audio tokens, audio width).
    Raises: MediaError: a recording cannot be decoded or has no sound.
    """
    with MediaReader() as reader:
        for recording in recordings:
            samples = reader.read_segments(recording.path, [(0.0, MAX_RECORDING_S)], n_frames=0).segments[0].samples
            if samples is None:
                raise MediaError(f"{recording.path.name} has no sound", hint="take it out of the folder")
            mel = torch.from_numpy(log_mel_spectrogram(samples))[None]
            with torch.inference_mode():
                yield encoder(mel, torch.tensor([mel.shape[-1]]))[0].numpy()


def standardise_audio(fusion: Fusion, speech: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Let the fusion expect voices that are distributed as these are.

    speech: emotion -> float32 (recordings, audio tokens, audio width).
    """
    features = np.concatenate(list(speech.values()))
    fusion.audio_mean.copy_(torch.from_numpy(features.mean(0)))
    fusion.audio_deviation.copy_(torch.from_numpy(features.std(0) + 1e-3))
