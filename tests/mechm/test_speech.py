"""Features of speech are what the runtime computes: log-mel at the recording's own length, then the encoder."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from mechm.data.corpora import SpeechRecording
from mechm.model.build import build_audio_encoder
from mechm.model.config import TINY
from mechm.training.speech import speech_features
from mechm_runtime.errors import MediaError
from mechm_runtime.features.log_mel import log_mel_spectrogram

pytest.importorskip("av")


def tone(path: Path, seconds: float, pitch_hz: float) -> SpeechRecording:
    samples = 0.3 * np.sin(2 * np.pi * pitch_hz * np.arange(int(16_000 * seconds)) / 16_000)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return SpeechRecording(path, "01", "joy")


def test_features_are_the_encoders_at_the_recordings_own_length(tmp_path: Path) -> None:
    encoder = build_audio_encoder(TINY, None)
    recordings = [tone(tmp_path / "a.wav", 0.7, 220), tone(tmp_path / "b.wav", 1.3, 440)]
    features = list(speech_features(recordings, encoder))
    assert [f.shape for f in features] == [(2, 2 * TINY.audio.hidden_size)] * 2
    with wave.open(str(tmp_path / "b.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    mel = torch.from_numpy(log_mel_spectrogram(samples))[None]
    with torch.inference_mode():
        expected = encoder(mel, torch.tensor([mel.shape[-1]]))[0].numpy()
    assert np.abs(features[1] - expected).max() < 1e-3
    assert np.abs(features[0] - features[1]).max() > 0.01


def test_a_recording_without_sound_is_named(tmp_path: Path) -> None:
    path = tmp_path / "03a01Fa.wav"
    path.write_bytes(b"no sound at all")
    with pytest.raises(MediaError, match="03a01Fa"):
        list(speech_features([SpeechRecording(path, "03", "joy")], build_audio_encoder(TINY, None)))
