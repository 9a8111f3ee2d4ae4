"""Classification heads: transformers' own classes, and the speech layout that it has no class for.

The second is what audeering and others train as `Wav2Vec2ForSpeechClassification`: the encoder's states pooled over
time, then `classifier.dense`, tanh, `classifier.out_proj`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import onnx
import torch
from torch import Tensor, nn

from mechm_runtime.errors import WeightsError

SpeechPooling = Literal["mean", "sum", "max"]
POOLINGS: tuple[SpeechPooling, ...] = get_args(SpeechPooling)
DENSE, OUTPUT = "classifier.dense.weight", "classifier.out_proj.weight"
LABELS_KEY = "id2label"
"""Where a graph's metadata has its labels: JSON, index -> label, as in transformers' config.json."""


class SpeechClassifier(nn.Module):
    """Logits of a pooled speech encoder: the layout of audeering's wav2vec2 models.

    states: a module that gives states and their mask.
    """

    def __init__(self, states: nn.Module, head: nn.Module, pooling: SpeechPooling) -> None:
        super().__init__()
        self.states, self.head, self.pooling = states, head, pooling

    def forward(self, input_values: Tensor, attention_mask: Tensor) -> Tensor:
        """input_values: float (B, S). attention_mask: int64 (B, S), ones then zeros. Returns: float (B, n_labels)."""
        states, mask = self.states(input_values, attention_mask)
        weight = mask[..., None].to(states.dtype)
        if self.pooling == "max":
            pooled = states.masked_fill(weight == 0, torch.finfo(states.dtype).min).amax(1)
        else:
            pooled = (states * weight).sum(1)
            pooled = pooled / weight.sum(1) if self.pooling == "mean" else pooled
        logits: Tensor = self.head(pooled)
        return logits


class DenseHead(nn.Module):
    """A dense layer, tanh, and the output layer; dropout is only for training."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, pooled: Tensor) -> Tensor:
        """float (B, D) -> float (B, n_labels)."""
        logits: Tensor = self.out_proj(torch.tanh(self.dense(pooled)))
        return logits


def speech_classifier_class(encoder: Any) -> Any:
    """A class that transformers loads the layout with: `encoder` under its usual name, and `classifier`."""
    base = encoder.__mro__[1]  # HubertModel -> HubertPreTrainedModel

    class SpeechClassifierWeights(base):  # type: ignore[misc, valid-type]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            setattr(self, self.base_model_prefix, encoder(config))
            self.classifier = DenseHead(config)
            self.post_init()

    return SpeechClassifierWeights


def speech_pooling(config: Any) -> SpeechPooling:
    """The layout's pooling over time: the mean, unless the config says otherwise.

    Raises: WeightsError: a pooling that is not exported.
    """
    pooling = getattr(config, "pooling_mode", None) or "mean"
    for known in POOLINGS:
        if pooling == known:
            return known
    raise WeightsError(f"the head pools by {str(pooling)[:40]!r}", hint=f"exported are {', '.join(POOLINGS)}")


def read_labels(config: Any, n_labels: int) -> tuple[str, ...]:
    """The names of a head's outputs; those that the config does not name are LABEL_0 and so on, as transformers does.

    config: of transformers.
    """
    named = getattr(config, LABELS_KEY, None) or {}
    return tuple(str(named.get(number, f"LABEL_{number}")) for number in range(n_labels))


def read_metadata(path: Path) -> dict[str, str]:
    """The entries of a graph's metadata that `label_metadata` writes; none where it has no labels."""
    model = onnx.load(path, load_external_data=False)
    entries = {entry.key: entry.value for entry in model.metadata_props if entry.key in ("task", LABELS_KEY)}
    return entries if labels_in(entries) else {}


def labels_in(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Labels from a graph's metadata; none where there are none or they are damaged."""
    try:
        named = json.loads(metadata.get(LABELS_KEY, "{}"))
        return tuple(str(named[str(number)]) for number in range(len(named)))
    except (ValueError, LookupError, TypeError):
        return ()


def write_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Put entries into a graph's metadata, in place of those of the same name."""
    if not metadata:
        return
    model = onnx.load(path, load_external_data=False)
    kept = {entry.key: entry.value for entry in model.metadata_props} | dict(metadata)
    del model.metadata_props[:]
    for key, value in kept.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save_model(model, path)


def label_metadata(task: str, labels: Sequence[str]) -> dict[str, str]:
    """A classifier's entries in its graph's metadata; none where there are no labels."""
    if not labels:
        return {}
    return {"task": task, LABELS_KEY: json.dumps(dict(enumerate(labels)), ensure_ascii=False)}
