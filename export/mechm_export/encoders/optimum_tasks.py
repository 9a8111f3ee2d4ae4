"""Classes and tasks of transformers as optimum's TasksManager maps them, and the input that a class reads.

optimum 2.3 has no ONNX export configurations (those are optimum-onnx's, which does not import beside transformers 5):
`TasksManager` maps tasks to classes and classes to tasks, `input_generators` say which inputs dummies can be made for
and how large an image or a spectrogram is. Masks, padding and lengths are ours (`transformers_part`).

Importing this module imports optimum, which loads torch and transformers.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import transformers
from optimum.exporters.tasks import TasksManager
from optimum.utils.input_generators import (
    ASTDummyAudioInputGenerator,
    DummyAudioInputGenerator,
    DummyInputGenerator,
    DummyTextInputGenerator,
    DummyVisionInputGenerator,
)
from optimum.utils.normalized_config import (
    NormalizedConfig,
    NormalizedVisionConfig,
)
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES

from mechm_export.encoders.architectures import CLASSIFICATION, Architecture, Modality, Task

GENERATORS: dict[Modality, type[DummyInputGenerator]] = {
    "text": DummyTextInputGenerator,
    "vision": DummyVisionInputGenerator,
    "audio": DummyAudioInputGenerator,
}
MAIN_INPUTS = ("input_ids", "pixel_values", "input_values", "input_features")
"""Main inputs that a graph is exported with; the generators also know inputs that stand beside these."""
READS: dict[str, Modality] = {"text": "text", "image": "vision", "video": "vision", "audio": "audio"}
"""`input_modalities` of a transformers class -> modality."""
FEATURES: Task = "feature-extraction"


def classes_for(task: str) -> Mapping[str, Any]:
    """`model_type` -> name of the class that transformers has for a task.

    Classifiers of videos are transformers' own list: optimum has no task for them.
    """
    # optimum has no public accessor for a whole task; a test holds the name.
    classes: dict[str, Any] = dict(TasksManager._TRANSFORMERS_TASKS_TO_MODEL_MAPPINGS.get(task, {}))
    if task == CLASSIFICATION["vision"]:
        return MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES | classes
    return classes


def classifier_for(model_type: str, modality: Modality) -> str:
    """The class of transformers that classifies, or an empty string where there is none."""
    name = classes_for(CLASSIFICATION[modality]).get(model_type)
    loader = _load_class(name[0] if isinstance(name, tuple) else name)  # DeiT has a second one, with a teacher's head
    if loader is None or loader.main_input_name not in GENERATORS[modality].SUPPORTED_INPUT_NAMES:
        return ""
    return loader.__name__ if modality != "text" or modality_of(loader) == modality else ""


def task_of_class(name: str) -> str:
    """The task that a class of transformers is for, or an empty string."""
    if name in MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES.values():
        return CLASSIFICATION["vision"]
    loader = _load_class(name)
    try:
        return "" if loader is None else str(TasksManager.infer_task_from_model(loader))
    except ValueError:
        return ""


def modality_of(loader: type[PreTrainedModel]) -> Modality | None:
    """The modality that a class reads; None for several, and for inputs that no dummy is made for."""
    reads, main_input = loader.input_modalities, loader.main_input_name
    one = reads if isinstance(reads, str) else reads[0] if len(reads) == 1 else ""
    modality = READS.get(one)
    if modality is None or main_input not in MAIN_INPUTS:
        return None
    return modality if main_input in GENERATORS[modality].SUPPORTED_INPUT_NAMES else None


def find_encoder(model_type: str) -> Architecture | None:
    """An encoder outside of our own table, or None.

    Decoders and encoder-decoders are none: those that write text, and were not trained to fill in masked words.
    """
    loader = _load_class(classes_for(FEATURES).get(model_type))
    if loader is None or (modality := modality_of(loader)) is None:
        return None
    decodes = model_type in classes_for("text-generation") and model_type not in classes_for("fill-mask")
    if decodes or model_type in classes_for("text2text-generation"):
        return None
    return Architecture(model_type, "transformers", modality, loader.__name__)


def _load_class(name: object) -> type[PreTrainedModel] | None:
    """A model class of transformers; None for several names, and for classes that lack a package."""
    with warnings.catch_warnings():  # DeBERTa's module compiles with torch.jit, which torch is giving up
        warnings.simplefilter("ignore", DeprecationWarning)
        loader = getattr(transformers, name, None) if isinstance(name, str) else None
    return loader if isinstance(loader, type) and issubclass(loader, PreTrainedModel) else None


def count_encoders() -> dict[Modality, int]:
    """Architectures outside of our table that a task and a dummy input are known for, per modality."""
    found = [find_encoder(model_type) for model_type in classes_for(FEATURES)]
    return {modality: sum(one is not None and one.modality == modality for one in found) for modality in GENERATORS}


def count_classifiers() -> dict[Modality, int]:
    """Architectures with a classifier, per modality."""
    return {
        modality: sum(bool(classifier_for(model_type, modality)) for model_type in classes_for(task))
        for modality, task in CLASSIFICATION.items()
    }


def image_shape(config: Any, side: tuple[int, int]) -> tuple[int, int, int]:
    """Channels, height and width of an architecture's images.

    side: height and width for architectures that take any size.
    """
    height, width = side
    generator = DummyVisionInputGenerator(FEATURES, NormalizedVisionConfig(config), 1, height=height, width=width)
    _, channels, height, width = generator.generate("pixel_values", framework="np").shape
    return int(channels), int(height), int(width)


def spectrogram_shape(config: Any) -> tuple[int, int]:
    """Frames and mel bins of an Audio Spectrogram Transformer's input, whose size is fixed."""
    generator = ASTDummyAudioInputGenerator(FEATURES, NormalizedConfig(config), 1)
    _, n_frames, n_mels = generator.generate("input_values", framework="np").shape
    return int(n_frames), int(n_mels)
