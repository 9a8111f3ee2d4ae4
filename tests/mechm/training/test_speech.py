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
from mechm.training.speech import SpeechFeatures, read_speech, read_speech_corpus, speech_lines
from mechm_runtime.errors import MediaError
from mechm_runtime.modalities.log_mel import log_mel_spectrogram
from mechm_runtime.types import EMOTIONS

pytest.importorskip("av")


def tone(path: Path, seconds: float, pitch_hz: float, speaker: str = "01") -> SpeechRecording:
    samples = 0.3 * np.sin(2 * np.pi * pitch_hz * np.arange(int(16_000 * seconds)) / 16_000)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return SpeechRecording(path, speaker, "joy")


def test_features_are_the_encoders_at_the_recordings_own_length(tmp_path: Path) -> None:
    encoder = build_audio_encoder(TINY, None)
    speech, problems = read_speech([tone(tmp_path / "a.wav", 0.7, 220), tone(tmp_path / "b.wav", 1.3, 440)], encoder)
    assert problems == ()
    assert speech.tokens.shape == (1, 2, 2, 2 * TINY.audio.hidden_size)
    assert speech.emotions.tolist() == [EMOTIONS.index("joy")] * 2
    assert speech.speakers == ("01", "01")
    with wave.open(str(tmp_path / "b.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    mel = torch.from_numpy(log_mel_spectrogram(samples))[None]
    with torch.inference_mode():
        expected = encoder(mel, torch.tensor([mel.shape[-1]]))[0].numpy()
    assert np.abs(speech.tokens[0, 1] - expected).max() < 1e-3
    assert np.abs(speech.tokens[0, 0] - speech.tokens[0, 1]).max() > 0.01


def test_copies_are_the_seeds_and_do_not_depend_on_the_order(tmp_path: Path) -> None:
    encoder = build_audio_encoder(TINY, None)
    one, other = tone(tmp_path / "a.wav", 0.4, 220), tone(tmp_path / "b.wav", 0.5, 440, speaker="02")
    steps: list[tuple[int, int]] = []
    first, _ = read_speech([one, other], encoder, n_copies=2, on_recording=lambda *step: steps.append(step))
    assert steps == [(1, 2), (2, 2)]
    assert first.tokens.shape[:2] == (3, 2)
    assert np.abs(first.tokens[1:] - first.tokens[0]).max() > 1e-3
    turned, _ = read_speech([other, one], encoder, n_copies=2)
    assert np.array_equal(turned.tokens[:, ::-1], first.tokens)
    reseeded, _ = read_speech([one, other], encoder, n_copies=2, seed=1)
    assert np.array_equal(reseeded.tokens[0], first.tokens[0])
    assert not np.array_equal(reseeded.tokens[1:], first.tokens[1:])


def test_what_cannot_be_used_is_told_at_the_end(tmp_path: Path) -> None:
    broken, silent = tmp_path / "03a01Fa.wav", tone(tmp_path / "silent.wav", 0.5, 0.0)
    broken.write_bytes(b"no sound at all")
    recordings = [SpeechRecording(broken, "03", "joy"), silent, tone(tmp_path / "a.wav", 0.4, 220)]
    speech, problems = read_speech(recordings, build_audio_encoder(TINY, None))
    assert speech.speakers == ("01",)
    assert [problem.name for problem in problems] == ["03a01Fa.wav", "silent.wav"]
    assert all(problem.reason and problem.name not in problem.reason for problem in problems)
    lines = speech_lines(speech, problems)
    assert lines[0] == "speech: 1 recordings of 1 speakers (joy 1)"
    assert any("joy is spoken by one speaker only" in line for line in lines)
    assert any("not used: 2 recordings" in line for line in lines)
    with pytest.raises(MediaError, match="03a01Fa"):
        read_speech(recordings[:1], build_audio_encoder(TINY, None))


def test_a_folder_with_a_label_table_is_read_by_it(tmp_path: Path) -> None:
    tone(tmp_path / "03a01Fa.wav", 0.4, 220)
    assert [(r.speaker, r.emotion) for r in read_speech_corpus(tmp_path).items] == [("03", "joy")]
    (tmp_path / "labels.csv").write_text("file,speaker,emotion\n03a01Fa.wav,maria,anger\n", encoding="utf-8")
    assert [(r.speaker, r.emotion) for r in read_speech_corpus(tmp_path).items] == [("maria", "anger")]


def test_selected_recordings_keep_their_copies_and_labels() -> None:
    tokens = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 2, 2)
    speech = SpeechFeatures(tokens, np.array([1, 4, 1]), ("a", "b", "a"))
    kept = speech.select(speech.of(["a"]))
    assert kept.speakers == ("a", "a")
    assert np.array_equal(kept.tokens, tokens[:, [0, 2]])
    by_emotion = speech.by_emotion()
    assert sorted(by_emotion) == ["anger", "joy"]
    assert np.array_equal(by_emotion["anger"], tokens[0, [0, 2]])
