"""Which encoders can be exported: `model_type` of a Hugging Face config.json -> what it reads and how it is loaded.

A table of our own: optimum's TasksManager knows more architectures, but says nothing of what differs between these
(masks, pooling, positions), its dummy inputs have no padding, and its exporter does not import beside transformers 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from mechm_runtime.errors import InputError, WeightsError

Modality = Literal["text", "vision", "audio"]
Task = Literal["feature-extraction", "sentence-embedding", "image-embedding", "audio-embedding"]
"""feature-extraction: a state a token, patch or frame. The others: one vector an input."""

TASKS: tuple[Task, ...] = get_args(Task)
EMBEDDING: dict[Modality, Task] = {
    "text": "sentence-embedding",
    "vision": "image-embedding",
    "audio": "audio-embedding",
}
Family = Literal["bert", "clip-text", "siglip-text", "vit", "wav2vec2", "whisper"]
"""Encoders with the same inputs, masks and outputs."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture.

    loader: class of transformers that loads its states. embedder: class that loads its embedding too, where that has
    weights of its own. module: where `loader` is, if not in transformers itself.
    """

    name: str
    family: Family
    modality: Modality
    loader: str
    embedder: str = ""
    module: str = "transformers"

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it can be exported for."""
        return ("feature-extraction", EMBEDDING[self.modality])


_BERT = {
    "bert": "BertModel",
    "camembert": "CamembertModel",
    "distilbert": "DistilBertModel",
    "electra": "ElectraModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
}
_CLIP_VISION = Architecture("CLIP vision", "vit", "vision", "CLIPVisionModel", "CLIPVisionModelWithProjection")
_CLIP_TEXT = Architecture("CLIP text", "clip-text", "text", "CLIPTextModel", "CLIPTextModelWithProjection")
_SIGLIP_VISION = Architecture("SigLIP vision", "vit", "vision", "SiglipVisionModel")
_SIGLIP_TEXT = Architecture("SigLIP text", "siglip-text", "text", "SiglipTextModel")

ARCHITECTURES: dict[str, tuple[Architecture, ...]] = {
    # MPNet with attention that can be exported as one operator, which int8 needs to be fast.
    "mpnet": (Architecture("mpnet", "bert", "text", "MPNetEncoder", module="mechm.model.mpnet"),),
    **{kind: (Architecture(kind, "bert", "text", loader),) for kind, loader in _BERT.items()},
    "clip": (_CLIP_VISION, _CLIP_TEXT),
    "clip_vision_model": (_CLIP_VISION,),
    "clip_text_model": (_CLIP_TEXT,),
    "siglip": (_SIGLIP_VISION, _SIGLIP_TEXT),
    "siglip_vision_model": (_SIGLIP_VISION,),
    "siglip_text_model": (_SIGLIP_TEXT,),
    "dinov2": (Architecture("DINOv2", "vit", "vision", "Dinov2Model"),),
    # EVA-CLIP ViT-g/14 as BLIP-2 carries it: the form that `mechm weights fetch --preset llama2-7b` writes.
    "blip_2_vision_model": (Architecture("EVA-CLIP", "vit", "vision", "Blip2VisionModel"),),
    "hubert": (Architecture("HuBERT", "wav2vec2", "audio", "HubertModel"),),
    "wav2vec2": (Architecture("wav2vec2", "wav2vec2", "audio", "Wav2Vec2Model"),),
    "wavlm": (Architecture("WavLM", "wav2vec2", "audio", "WavLMModel"),),
    "whisper": (Architecture("Whisper encoder", "whisper", "audio", "WhisperModel"),),
}


def find_architecture(model_type: object, task: Task | None, modality: Modality | None) -> tuple[Architecture, Task]:
    """The architecture and task to export.

    model_type: as config.json has it. task: None for the embedding of what the encoder reads.
    Raises: WeightsError: an unknown architecture. InputError: the task is not one of its, or text and vision fit both.
    """
    found = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if found is None:
        raise WeightsError(
            f"no export for the architecture {str(model_type)[:80]!r}", hint=f"known are {', '.join(ARCHITECTURES)}"
        )
    fitting = [one for one in found if modality in (None, one.modality) and (task is None or task in one.tasks)]
    if not fitting:
        tasks = sorted({f"{task} of {one.modality}" for one in found for task in one.tasks})
        raise InputError(
            f"{model_type} has no {task or 'embedding'}{f' of {modality}' if modality else ''}",
            hint=f"it has {', '.join(tasks)}",
        )
    if len(fitting) > 1:
        choices = " or ".join(f"--modality {one.modality}" for one in fitting)
        raise InputError(f"{model_type} holds several encoders", hint=f"give {choices}")
    return fitting[0], task or EMBEDDING[fitting[0].modality]
