"""Speech encoders without padding to a fixed length, pooled over time to a few tokens per utterance.

A padded batch gives the same result as single utterances: padding is zeroed before each convolution and masked in
attention. The layers of transformers' models are called one by one here, since its Whisper pads to 30 s and takes no
mask, and since its hidden states differ between versions and cannot be traced for export.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import HubertConfig, HubertModel, WhisperConfig, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from mechm.model.config import AudioEncoderConfig
from mechm.model.fusion import MASKED
from mechm.model.transformers_output import quiet_transformers
from mechm_runtime.errors import WeightsError


class WhisperAudioEncoder(nn.Module):
    """Whisper's encoder over log-mel frames."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = WhisperEncoder(
            WhisperConfig(
                d_model=config.hidden_size,
                encoder_layers=config.n_layers,
                encoder_attention_heads=config.n_heads,
                encoder_ffn_dim=config.intermediate_size,
                num_mel_bins=config.n_mels,
                max_source_positions=config.max_positions,
            )
        )

    @classmethod
    def from_folder(cls, folder: Path, config: AudioEncoderConfig) -> WhisperAudioEncoder:
        """Load the encoder half of a transformers Whisper folder.

        Raises: WeightsError: its sizes differ from `config`.
        """
        encoder = cls(config)
        with quiet_transformers():
            loaded = WhisperModel.from_pretrained(folder).encoder
        found, wanted = (loaded.config.d_model, len(loaded.layers)), (config.hidden_size, config.n_layers)
        if found != wanted:
            raise WeightsError(f"the audio encoder has (width, layers) {found}, the preset wants {wanted}")
        encoder.encoder = loaded
        return encoder.eval()

    def forward(self, mel: Tensor, mel_frames: Tensor) -> Tensor:
        """Encode utterances.

        mel: float (B, n_mels, T), log-mel, 10 ms per frame, padded at the end; T at most 2 * max_positions.
        mel_frames: int64 (B,), frames that belong to each utterance, at least 1.
        Returns: float (B, pooled layers, 2 * hidden_size), mean then standard deviation over time.
        """
        x, within = embed_mel(self.encoder, mel, mel_frames)
        return _pooled_layers(x, self.encoder, within, self.config.pooled_layers)


class HubertAudioEncoder(nn.Module):
    """HuBERT over the waveform."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.hubert = HubertModel(
            HubertConfig(
                hidden_size=config.hidden_size,
                num_hidden_layers=config.n_layers,
                num_attention_heads=config.n_heads,
                intermediate_size=config.intermediate_size,
                feat_extract_norm="layer",
                conv_bias=True,
                do_stable_layer_norm=True,
            )
        )

    @classmethod
    def from_folder(cls, folder: Path, config: AudioEncoderConfig) -> HubertAudioEncoder:
        """Load a transformers folder of a HuBERT with layer-normed features (large, x-large).

        Raises: WeightsError: its sizes differ from `config`.
        """
        encoder = cls(config)
        with quiet_transformers():
            loaded = HubertModel.from_pretrained(folder)
        found = (loaded.config.hidden_size, loaded.config.num_hidden_layers)
        if found != (config.hidden_size, config.n_layers) or loaded.config.feat_extract_norm != "layer":
            raise WeightsError(f"this HuBERT has (width, layers) {found}, the preset wants a layer-normed large one")
        encoder.hubert = loaded
        return encoder.eval()

    def forward(self, input_values: Tensor, n_samples: Tensor) -> Tensor:
        """Encode utterances.

        input_values: float (B, S), 16 kHz mono with zero mean and unit variance, padded at the end.
        n_samples: int64 (B,), samples that belong to each utterance, at least 400.
        Returns: float (B, pooled layers, 2 * hidden_size).
        """
        hubert, encoder = self.hubert, self.hubert.encoder
        within = torch.arange(input_values.shape[-1], device=input_values.device)[None] < n_samples[:, None]
        features = hubert.feature_extractor(input_values * within.to(input_values.dtype)).transpose(1, 2)
        frames = hubert._get_feat_extract_output_lengths(n_samples)  # type: ignore[arg-type]
        within = torch.arange(features.shape[1], device=features.device)[None] < frames[:, None]
        x = hubert.feature_projection(features) * within[..., None].to(features.dtype)
        x = x + encoder.pos_conv_embed(x)
        return _pooled_layers(x, encoder, within, self.config.pooled_layers)


def embed_mel(encoder: WhisperEncoder, mel: Tensor, mel_frames: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the input of Whisper's first layer; arguments as in `WhisperAudioEncoder.forward`.

    Returns: float (B, (T + 1) // 2, D), and bool (B, (T + 1) // 2), positions that belong to the utterance.
    """
    within = torch.arange(mel.shape[-1], device=mel.device)[None] < mel_frames[:, None]
    keep = within[:, None].to(mel.dtype)
    x = F.gelu(encoder.conv1(mel * keep)) * keep
    # conv2 has stride 2: its output frame t looks at input frames 2t-1 to 2t+1, so every second mask entry counts.
    x = F.gelu(encoder.conv2(x)).transpose(1, 2)
    return x + encoder.embed_positions.weight[: x.shape[1]], within[:, ::2]


def layer_states(x: Tensor, encoder: nn.Module, within: Tensor) -> Iterator[Tensor]:
    """Yield the output of each of an encoder's layers; the last one is normalised, as in transformers.

    x: float (B, T, D), input of the first layer. within: bool (B, T). encoder: has `layers` and `layer_norm`.
    """
    layers = cast(nn.ModuleList, encoder.layers)
    # One row per query, since onnxruntime's fused attention does not broadcast over queries.
    bias = ((~within).to(x.dtype) * MASKED)[:, None, None, :].expand(-1, -1, x.shape[1], -1)
    for number, layer in enumerate(layers, 1):
        x = layer(x, attention_mask=bias)
        yield cast(nn.LayerNorm, encoder.layer_norm)(x) if number == len(layers) else x


def _pooled_layers(x: Tensor, encoder: nn.Module, within: Tensor, wanted: tuple[int, ...]) -> Tensor:
    """Run an encoder's layers, see `layer_states`, and pool the wanted ones: float (B, wanted layers, 2 * D)."""
    states = enumerate(layer_states(x, encoder, within), 1)
    return torch.stack([pool_time(state, within) for number, state in states if number in wanted], 1)


def pool_time(states: Tensor, within: Tensor) -> Tensor:
    """Pool over time: states (B, T, D), within bool (B, T) -> (B, 2 * D), mean and standard deviation."""
    weight = within[..., None].to(states.dtype)
    count = weight.sum(1)
    mean = (states * weight).sum(1) / count
    variance = ((states - mean[:, None]).square() * weight).sum(1) / count
    return torch.cat([mean, (variance + 1e-6).sqrt()], -1)
