"""Samples and frames as the encoders' inputs, in numpy: equal to what the training side's extractors give."""

from mechm_runtime.features.faces import Face, FaceConfig, FaceFinder, face_pixels
from mechm_runtime.features.log_mel import LogMelConfig, log_mel_spectrogram
from mechm_runtime.features.scene import SceneConfig, scene_pixels

__all__ = [
    "Face",
    "FaceConfig",
    "FaceFinder",
    "LogMelConfig",
    "SceneConfig",
    "face_pixels",
    "log_mel_spectrogram",
    "scene_pixels",
]
