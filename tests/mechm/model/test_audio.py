"""Speech encoders: padding changes nothing, and full-length audio equals transformers' own models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import HubertModel, WhisperConfig, WhisperModel

from mechm.model.audio import HubertAudioEncoder, WhisperAudioEncoder, pool_time
from mechm.model.config import LLAMA2_7B, TINY
from mechm_runtime.errors import WeightsError

WHISPER = TINY.audio
# The real widths of HuBERT-large, two layers deep.
HUBERT = replace(LLAMA2_7B.audio, n_layers=2, pooled_layers=(1, 2))


@pytest.fixture(scope="module")
def whisper() -> WhisperAudioEncoder:
    torch.manual_seed(0)
    return WhisperAudioEncoder(WHISPER).eval()


@pytest.fixture(scope="module")
def hubert() -> HubertAudioEncoder:
    torch.manual_seed(0)
    return HubertAudioEncoder(HUBERT).eval()


def statistics(states: Tensor) -> Tensor:
    """(1, T, D) -> (1, 2 * D), written another way than `pool_time`."""
    return torch.cat([states.mean(1), (states.var(1, correction=0) + 1e-6).sqrt()], -1)


@torch.inference_mode()
def test_whisper_at_thirty_seconds_equals_transformers(whisper: WhisperAudioEncoder) -> None:
    mel = torch.randn(1, WHISPER.n_mels, 3000)
    theirs = whisper.encoder(mel, output_hidden_states=True)
    tokens = whisper(mel, torch.tensor([3000]))
    assert tokens.shape == (1, 2, 2 * WHISPER.hidden_size)
    assert (tokens[:, 0] - statistics(theirs.hidden_states[1])).abs().max() < 1e-5
    assert (tokens[:, 1] - statistics(theirs.last_hidden_state)).abs().max() < 1e-5


@torch.inference_mode()
def test_a_padded_whisper_batch_equals_single_utterances(whisper: WhisperAudioEncoder) -> None:
    lengths = [1, 2, 97, 98, 250]
    mels = [torch.randn(1, WHISPER.n_mels, length) for length in lengths]
    # An even number of frames, so that an odd length ends between two frames of the strided convolution.
    batch = torch.cat([torch.nn.functional.pad(mel, (0, 300 - mel.shape[-1])) for mel in mels])
    together = whisper(batch, torch.tensor(lengths))
    noise = torch.arange(300)[None, None] >= torch.tensor(lengths)[:, None, None]
    assert torch.equal(together, whisper(torch.where(noise, 7.0, batch), torch.tensor(lengths)))
    for row, mel in enumerate(mels):
        alone = whisper(mel, torch.tensor([mel.shape[-1]]))
        assert (together[row] - alone[0]).abs().max() < 1e-5, lengths[row]


@torch.inference_mode()
def test_only_the_wanted_layers_come_out(whisper: WhisperAudioEncoder) -> None:
    first = WhisperAudioEncoder(replace(WHISPER, pooled_layers=(1,))).eval()
    first.load_state_dict(whisper.state_dict())
    mel = torch.randn(2, WHISPER.n_mels, 60)
    lengths = torch.tensor([60, 33])
    assert torch.equal(first(mel, lengths), whisper(mel, lengths)[:, :1])


def test_whisper_loads_the_encoder_of_a_folder(tmp_path: Path) -> None:
    torch.manual_seed(1)
    sizes = {
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 64,
        "vocab_size": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }
    model = WhisperModel(WhisperConfig(**sizes)).eval()
    model.save_pretrained(tmp_path)
    encoder = WhisperAudioEncoder.from_folder(tmp_path, WHISPER)
    mel = torch.randn(1, WHISPER.n_mels, 3000)
    with torch.inference_mode():
        expected = statistics(model.encoder(mel).last_hidden_state)
        assert (encoder(mel, torch.tensor([3000]))[:, -1] - expected).abs().max() < 1e-5
    with pytest.raises(WeightsError, match=r"\(32, 2\)"):
        WhisperAudioEncoder.from_folder(tmp_path, replace(WHISPER, n_layers=4))


@torch.inference_mode()
def test_hubert_equals_transformers(hubert: HubertAudioEncoder) -> None:
    samples = torch.randn(1, 8000)
    theirs = hubert.hubert(samples, output_hidden_states=True)
    tokens = hubert(samples, torch.tensor([8000]))
    assert tokens.shape == (1, 2, 2 * 1024)
    assert len(theirs.hidden_states) == HUBERT.n_layers + 1
    assert (tokens[:, 0] - statistics(theirs.hidden_states[1])).abs().max() < 1e-4
    assert (tokens[:, 1] - statistics(theirs.last_hidden_state)).abs().max() < 1e-4


@torch.inference_mode()
def test_a_padded_hubert_batch_equals_single_utterances(hubert: HubertAudioEncoder) -> None:
    lengths = [400, 3333, 6000]
    sounds = [torch.randn(1, length) for length in lengths]
    batch = torch.cat([torch.nn.functional.pad(sound, (0, 6400 - sound.shape[-1])) for sound in sounds])
    together = hubert(batch, torch.tensor(lengths))
    noise = torch.arange(6400)[None] >= torch.tensor(lengths)[:, None]
    assert torch.equal(together, hubert(torch.where(noise, 1.0, batch), torch.tensor(lengths)))
    for row, sound in enumerate(sounds):
        alone = hubert(sound, torch.tensor([sound.shape[-1]]))
        assert (together[row] - alone[0]).abs().max() < 1e-5, lengths[row]


def test_hubert_loads_a_folder_and_refuses_another_size(tmp_path: Path) -> None:
    small = replace(HUBERT, hidden_size=32, n_heads=2, intermediate_size=64)
    torch.manual_seed(2)
    made = HubertAudioEncoder(small).eval()
    made.hubert.save_pretrained(tmp_path)
    loaded = HubertAudioEncoder.from_folder(tmp_path, small)
    samples, lengths = torch.randn(1, 4000), torch.tensor([4000])
    with torch.inference_mode():
        assert torch.equal(made(samples, lengths), loaded(samples, lengths))
    with pytest.raises(WeightsError, match=r"\(32, 2\)"):
        HubertAudioEncoder.from_folder(tmp_path, replace(small, n_layers=3, pooled_layers=(1,)))


def test_hubert_large_has_its_size() -> None:
    with torch.device("meta"):
        encoder = HubertAudioEncoder(LLAMA2_7B.audio)
    n_parameters = sum(p.numel() for p in encoder.parameters())
    assert isinstance(encoder.hubert, HubertModel)
    assert 314e6 < n_parameters < 318e6


def test_pooling_counts_only_frames_within() -> None:
    states = torch.randn(2, 5, 3)
    within = torch.tensor([[True] * 5, [True, True, False, False, False]])
    pooled = pool_time(states, within)
    assert (pooled[:1] - statistics(states[:1])).abs().max() < 1e-6
    assert (pooled[1:] - statistics(states[1:, :2])).abs().max() < 1e-6
