"""Preprocessing constants of a preset, written into its bundle and used for extracting training features."""

from __future__ import annotations

from mechm.model.config import ModelConfig
from mechm_runtime.bundle.config import FusionWindows, LogMelConfig, SceneConfig
from mechm_runtime.modalities.frame_pixels import clip_config


def log_mel_config(config: ModelConfig) -> LogMelConfig:
    """Return the spectrogram config of a preset's speech encoder."""
    return LogMelConfig(n_mels=config.audio.n_mels)


def scene_config(config: ModelConfig) -> SceneConfig:
    """Return the image preprocessing config of a preset's scene encoder."""
    side = config.scene.image_size
    if config.scene.architecture == "dinov2":
        return SceneConfig(image_size=side)
    return clip_config(side)


def fusion_windows(config: ModelConfig) -> FusionWindows:
    """Return the sizes of the inputs of a preset's fusion."""
    return FusionWindows(
        window=config.fusion.window,
        window_context=config.fusion.window_context,
        n_frames=config.n_frames,
        max_faces=config.max_faces,
        audio_tokens=len(config.audio.pooled_layers),
        audio_width=2 * config.audio.hidden_size,
        scene_width=config.scene.hidden_size,
        text_width=config.text.hidden_size,
        face_width=config.fusion.face_width,
    )
