"""A loaded encoder as a part to export: names, dtypes and axes of inputs and outputs, and sizes to try.

This module describes the architectures of our own table (`architectures`) with their modules (`modules`); those that
transformers' own forward serves are described in `transformers_part`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from mechm_export.encoders.architectures import CLASSIFICATION
from mechm_export.encoders.axes import BATCH, Axes
from mechm_export.encoders.checkpoint import find_left_out
from mechm_export.encoders.heads import SpeechClassifier, read_labels, speech_pooling
from mechm_export.encoders.modules import (
    OneOutput,
    PooledStates,
    States,
    TextStates,
    Wav2Vec2States,
    WhisperStates,
    resize_positions,
)
from mechm_export.encoders.sentences import sentence_pooling
from mechm_export.encoders.source import EncoderSource, load_encoder
from mechm_export.encoders.trials import (
    LONGEST_TRIAL,
    MASK,
    PART,
    attention_heads,
    check_limit,
    most_tokens,
    trial_sizes,
    word_inputs,
)
from mechm_export.graphs.part import ExportPart, Int8Recipe
from mechm_runtime.bundle.manifest import Tensor
from mechm_runtime.errors import InputError, WeightsError


@dataclass(frozen=True, slots=True)
class EncoderPart:
    """An encoder or a classifier to export, and what of its checkpoint is in it.

    labels: of a classifier's outputs, in their order; empty for encoders. left_out: names of the checkpoint's tensors
    that no output depends on, as they are in its files.
    """

    part: ExportPart
    labels: tuple[str, ...]
    left_out: tuple[str, ...]


def load_part(source: EncoderSource, axes: Axes) -> EncoderPart:
    """Load an encoder or a classifier, describe it, and account for every tensor of its checkpoint.

    Raises: InputError: axes that it does not have. WeightsError: weights that do not load or are missing, or a form of
        the architecture that is not exported.
    """
    loaded = load_encoder(source)
    for parameter in loaded.model.parameters():
        parameter.requires_grad_(False)
    if source.architecture.family == "transformers":
        from mechm_export.encoders.transformers_part import transformers_part  # it loads optimum

        part = transformers_part(source, loaded, axes)
    else:
        build = {"text": _text_part, "vision": _vision_part, "audio": _audio_part}[source.architecture.modality]
        part = build(source, loaded.model, axes)
    shortest = {axis: min(sizes[axis] for sizes in part.trial_sizes) for axis in part.trial_sizes[0]}
    feeds = part.trial_inputs(shortest, np.random.default_rng(0))
    left_out = find_left_out(loaded, part.module, [torch.from_numpy(feeds[tensor.name]) for tensor in part.inputs])
    labels: tuple[str, ...] = ()
    if source.task in CLASSIFICATION.values() and isinstance(n_labels := part.outputs[0].axes[-1], int):
        labels = read_labels(loaded.model.config, n_labels)
    return EncoderPart(part, labels, left_out)


def encoder_part(source: EncoderSource, axes: Axes) -> ExportPart:
    """Load an encoder or a classifier and describe it. Raises: as `load_part`."""
    return load_part(source, axes).part


def _text_part(source: EncoderSource, model: Any, axes: Axes) -> ExportPart:
    family, config = source.architecture.family, model.config
    longest = most_tokens(model)
    fixed_length = {"tokens": longest} if family == "siglip-text" else {}
    names = [BATCH] if fixed_length else [BATCH, "tokens"]
    sizes = axes.resolve(names, fixed_length)
    check_limit(sizes, "tokens", longest)
    shape = (sizes[BATCH], sizes["tokens"])
    inputs = [Tensor("input_ids", "int64", shape)]
    if family != "siglip-text":  # it was trained on padding as on any other word
        inputs.append(Tensor(MASK, "int64", shape))
    width = config.hidden_size
    states = Tensor("last_hidden_state", "float32", (*shape, width))
    module: nn.Module
    if family == "siglip-text":
        embedding = "pooler_output", "text_embeds", getattr(config, "projection_size", width)
        module, output = _one_output(model, source.task, embedding, "input_ids", states)
    elif family == "clip-text":
        embedding = "text_embeds", "text_embeds", config.projection_dim
        module, output = _one_output(model, source.task, embedding, "input_ids", states)
    elif source.task == "feature-extraction":
        module, output = States(TextStates(model), with_mask=False), states
    else:
        pooling, normalize = sentence_pooling(source.folder)
        module = PooledStates(TextStates(model), pooling, normalize=normalize)
        output = Tensor("sentence_embedding", "float32", (sizes[BATCH], width))
    end = config.eos_token_id if family == "clip-text" else None
    return ExportPart(
        PART,
        module.eval(),
        tuple(inputs),
        (output,),
        trial_sizes(sizes, {"tokens": (16, 5, min(longest, LONGEST_TRIAL), 9)}, (2, 1, 1, 4)),
        n_heads=attention_heads(config),
        integer_limits={"input_ids": config.vocab_size},
        int8=Int8Recipe(smoothing=0.5, token_scales=True, embeddings=True) if family == "mpnet" else Int8Recipe(),
        make_inputs=partial(word_inputs, shape, config.vocab_size, [tensor.name for tensor in inputs], end),
    )


def _vision_part(source: EncoderSource, model: Any, axes: Axes) -> ExportPart:
    config = model.config
    native = config.image_size
    side = axes.fixed.get("height", axes.fixed.get("width", native))
    sizes = axes.resolve([BATCH], {"height": side, "width": side})
    if sizes["height"] != sizes["width"] or side % config.patch_size:
        raise InputError(
            f"images of {sizes['height']} x {sizes['width']} pixels do not fit patches of {config.patch_size}",
            hint=f"square, and a multiple of {config.patch_size}: --axes batch,height={native}",
        )
    if side != native:
        resize_positions(model, side)
    if source.task != "feature-extraction" and getattr(config, "vision_use_head", True) is False:
        raise WeightsError("this SigLIP has no pooling head", hint="--task feature-extraction")
    patches = (side // config.patch_size) ** 2 + (0 if source.architecture.name == "SigLIP vision" else 1)
    states = Tensor("last_hidden_state", "float32", (sizes[BATCH], patches, config.hidden_size))
    # transformers norms EVA-CLIP's class token once more for its pooler_output; BLIP-2 and MiniGPT-v2 read it as it is.
    field = {"CLIP vision": "image_embeds", "EVA-CLIP": "class_token"}.get(source.architecture.name, "pooler_output")
    width = config.projection_dim if field == "image_embeds" else config.hidden_size
    module, output = _one_output(model, source.task, (field, "image_embeds", width), "pixel_values", states)
    return ExportPart(
        PART,
        module.eval(),
        (Tensor("pixel_values", "float32", (sizes[BATCH], 3, side, side)),),
        (output,),
        trial_sizes(sizes, {}, (2, 1, 3)),
        n_heads=attention_heads(config),
    )


def _audio_part(source: EncoderSource, model: Any, axes: Axes) -> ExportPart:
    config = model.config
    states: nn.Module
    if source.architecture.family == "whisper":
        axis, longest = "frames", 2 * config.max_source_positions
        sizes = axes.resolve([BATCH, axis], {})
        check_limit(sizes, axis, longest)
        features = Tensor("input_features", "float32", (sizes[BATCH], config.num_mel_bins, sizes[axis]))
        lengths: tuple[int, ...] = (longest // 10, 8, longest // 8 + 1, longest)
        width, states = config.d_model, WhisperStates(model.encoder)
        n_out: int | str = (size + 1) // 2 if isinstance(size := sizes[axis], int) else "positions"
    else:
        if getattr(config, "add_adapter", False):
            raise WeightsError(f"{source.name} has an adapter behind its encoder, which is not exported")
        axis = "samples"
        sizes = axes.resolve([BATCH, axis], {})
        features = Tensor("input_values", "float32", (sizes[BATCH], sizes[axis]))
        lengths = (16000, 8000, 24000)
        encoder = getattr(model, model.base_model_prefix) if source.architecture.family == "speech-head" else model
        width, states = config.hidden_size, Wav2Vec2States(encoder)
        size = sizes[axis]
        n_out = int(encoder._get_feat_extract_output_lengths(size)) if isinstance(size, int) else "positions"
        if isinstance(n_out, int) and n_out < 1:
            raise InputError(f"{size} samples are too few for one frame", hint="samples=16000 is a second")
    outputs: tuple[Tensor, ...]
    if source.task == "feature-extraction":
        module: nn.Module = States(states, with_mask=True)
        outputs = (
            Tensor("last_hidden_state", "float32", (sizes[BATCH], n_out, width)),
            Tensor("position_mask", "int64", (sizes[BATCH], n_out)),
        )
    elif source.architecture.family == "speech-head":
        module = SpeechClassifier(states, model.classifier, speech_pooling(config))
        outputs = (Tensor("logits", "float32", (sizes[BATCH], config.num_labels)),)
    else:
        module = PooledStates(states)
        outputs = (Tensor("audio_embeds", "float32", (sizes[BATCH], width)),)
    return ExportPart(
        PART,
        module.eval(),
        (features, Tensor(MASK, "int64", (sizes[BATCH], sizes[axis]))),
        outputs,
        trial_sizes(sizes, {axis: lengths}, (2, 1, 3, 1)),
        n_heads=attention_heads(config),
        int8=Int8Recipe(conv_to_matmul=source.architecture.family == "whisper"),
    )


def _one_output(
    model: nn.Module, task: str, embedding: tuple[str, str, int], feature: str, states: Tensor
) -> tuple[nn.Module, Tensor]:
    """A module of one output and that output. embedding: the model's name of it, ours, and its width."""
    if task == "feature-extraction":
        return OneOutput(model, "last_hidden_state", feature), states
    field, name, width = embedding
    return OneOutput(model, field, feature), Tensor(name, "float32", (states.axes[0], width))
