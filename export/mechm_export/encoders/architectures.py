"""The table of encoders that need more than transformers' own forward: masks, pooling, positions, padding.

A row maps `model_type` of a Hugging Face config.json to the class that loads it and the family whose code exports it.
Every other encoder is found through optimum (`optimum_tasks`), which knows classes and tasks, but nothing of these
differences. `lookup` decides between the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Modality = Literal["text", "vision", "audio"]
Task = Literal[
    "feature-extraction",
    "sentence-embedding",
    "image-embedding",
    "audio-embedding",
    "text-classification",
    "image-classification",
    "audio-classification",
]
"""feature-extraction: a state per token, patch or frame. *-embedding: one vector per input. *-classification: the
logits of the checkpoint's trained head."""

TASKS: tuple[Task, ...] = get_args(Task)
EMBEDDING: dict[Modality, Task] = {
    "text": "sentence-embedding",
    "vision": "image-embedding",
    "audio": "audio-embedding",
}
CLASSIFICATION: dict[Modality, Task] = {
    "text": "text-classification",
    "vision": "image-classification",
    "audio": "audio-classification",
}
Family = Literal["mpnet", "clip-text", "siglip-text", "vit", "wav2vec2", "whisper", "speech-head", "transformers"]
"""Encoders with the same inputs, masks and outputs. speech-head: wav2vec2 below a dense and an output layer, which
transformers has no class for. transformers: everything whose own forward is exported as it is."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture.

    loader: class of transformers that loads its states, or its classifier. embedder: class that loads its embedding
    too, where that has weights of its own. module: where `loader` is, if not in transformers itself.
    """

    name: str
    family: Family
    modality: Modality
    loader: str
    embedder: str = ""
    module: str = "transformers"

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks that need no head."""
        return ("feature-extraction", EMBEDDING[self.modality])


_CLIP_VISION = Architecture("CLIP vision", "vit", "vision", "CLIPVisionModel", "CLIPVisionModelWithProjection")
_CLIP_TEXT = Architecture("CLIP text", "clip-text", "text", "CLIPTextModel", "CLIPTextModelWithProjection")
_SIGLIP_VISION = Architecture("SigLIP vision", "vit", "vision", "SiglipVisionModel")
_SIGLIP_TEXT = Architecture("SigLIP text", "siglip-text", "text", "SiglipTextModel")
# Patches of any grid, with positions resized to it; see `siglip2`.
_SIGLIP2_VISION = Architecture("SigLIP 2 vision", "transformers", "vision", "Siglip2VisionModel")
_SIGLIP2_TEXT = Architecture("SigLIP 2 text", "siglip-text", "text", "Siglip2TextModel")

ARCHITECTURES: dict[str, tuple[Architecture, ...]] = {
    # MPNet with attention that can be exported as one operator, which int8 needs to be fast.
    "mpnet": (Architecture("mpnet", "mpnet", "text", "MPNetEncoder", module="mechm.model.mpnet"),),
    "clip": (_CLIP_VISION, _CLIP_TEXT),
    "clip_vision_model": (_CLIP_VISION,),
    "clip_text_model": (_CLIP_TEXT,),
    "siglip": (_SIGLIP_VISION, _SIGLIP_TEXT),
    "siglip_vision_model": (_SIGLIP_VISION,),
    "siglip_text_model": (_SIGLIP_TEXT,),
    "siglip2": (_SIGLIP2_VISION, _SIGLIP2_TEXT),
    "siglip2_vision_model": (_SIGLIP2_VISION,),
    "siglip2_text_model": (_SIGLIP2_TEXT,),
    "dinov2": (Architecture("DINOv2", "vit", "vision", "Dinov2Model"),),
    # EVA-CLIP ViT-g/14 as BLIP-2 carries it: the form that `mechm weights fetch --preset llama2-7b` writes.
    "blip_2_vision_model": (Architecture("EVA-CLIP", "vit", "vision", "Blip2VisionModel"),),
    "hubert": (Architecture("HuBERT", "wav2vec2", "audio", "HubertModel"),),
    "wav2vec2": (Architecture("wav2vec2", "wav2vec2", "audio", "Wav2Vec2Model"),),
    "wavlm": (Architecture("WavLM", "wav2vec2", "audio", "WavLMModel"),),
    "whisper": (Architecture("Whisper encoder", "whisper", "audio", "WhisperModel"),),
}
