"""Encoders and classifiers of transformers, exported with their own forward, as parts.

Inputs follow from the class and the config; sizes of images and spectrograms come from optimum's dummy inputs. The axes
of outputs are found by running the module at two sizes (`output_axes`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mechm_export.encoders import siglip2
from mechm_export.encoders.architectures import CLASSIFICATION
from mechm_export.encoders.axes import BATCH, Axes
from mechm_export.encoders.checkpoint import LoadedModel
from mechm_export.encoders.modules import PooledStates, States, TextStates
from mechm_export.encoders.optimum_tasks import image_shape, spectrogram_shape
from mechm_export.encoders.output_axes import with_outputs
from mechm_export.encoders.sentences import sentence_pooling
from mechm_export.encoders.source import EncoderSource, first_line
from mechm_export.encoders.transformers_modules import AudioStates, Logits, OwnForward, Vector
from mechm_export.encoders.trials import (
    LONGEST_TRIAL,
    MASK,
    PART,
    TOKEN_TYPES,
    attention_heads,
    check_limit,
    most_tokens,
    trial_sizes,
    word_inputs,
)
from mechm_export.graphs.part import ExportPart, Feeds, Int8Recipe
from mechm_runtime.bundle.manifest import Tensor
from mechm_runtime.errors import InputError, MechmError, WeightsError

PREPROCESSOR = "preprocessor_config.json"
IMAGE_SIDE = 224
"""Side of images for architectures that take any size, where the preprocessor does not say."""
CLASS_TOKENS = ("cls_token", "class_embedding", "class_token")
SAMPLES, FRAMES = (16000, 8000, 24000), (50, 17, 67)
"""Lengths to try: of waveforms at 16 kHz, and of features."""
MakeInputs = Callable[[Mapping[str, int], np.random.Generator], Feeds]


def transformers_part(source: EncoderSource, loaded: LoadedModel, axes: Axes) -> ExportPart:
    """Describe an encoder or a classifier that transformers' own forward serves.

    Raises: InputError: axes that it does not have. WeightsError: a form that is not exported, or does not run.
    """
    build = {"text": _text_part, "vision": _vision_part, "audio": _audio_part}[source.architecture.modality]
    try:
        return build(source, loaded, axes)
    except MechmError:
        raise
    except Exception as error:  # each architecture has its own ways not to run
        raise WeightsError(
            f"{source.name} does not run for {source.task}: {type(error).__name__}: {first_line(error)}",
            hint=f"{source.architecture.loader} needs other inputs than this export makes",
        ) from error


def _text_part(source: EncoderSource, loaded: LoadedModel, axes: Axes) -> ExportPart:
    model, config = loaded.model, loaded.model.config
    longest = most_tokens(model)
    sizes = axes.resolve([BATCH, "tokens"], {})
    check_limit(sizes, "tokens", longest)
    shape = (sizes[BATCH], sizes["tokens"])
    names = ["input_ids", MASK]
    classifies = source.task in CLASSIFICATION.values()
    if pairs := classifies and getattr(config, "type_vocab_size", 0) > 1:
        names.append(TOKEN_TYPES)
    if classifies:
        module: nn.Module = Logits(model, names)
    elif source.task == "feature-extraction":
        module = States(TextStates(model), with_mask=False)
    else:
        pooling, normalize = sentence_pooling(source.folder)
        module = PooledStates(TextStates(model), pooling, normalize=normalize)
    pad = getattr(config, "pad_token_id", None)
    part = ExportPart(
        PART,
        module.eval(),
        tuple(Tensor(name, "int64", shape) for name in names),
        (),
        trial_sizes(sizes, {"tokens": (16, 5, min(longest, LONGEST_TRIAL), 9)}, (2, 1, 1, 4)),
        n_heads=0 if getattr(config, "is_decoder", False) else _heads(model, config),
        integer_limits={"input_ids": config.vocab_size},
        int8=Int8Recipe(smoothing=0.5, token_scales=True, embeddings=True),
        make_inputs=partial(word_inputs, shape, config.vocab_size, names, None, pad=pad, pairs=pairs),
    )
    return with_outputs(part, source.task, source.architecture.modality)


def _vision_part(source: EncoderSource, loaded: LoadedModel, axes: Axes) -> ExportPart:
    model = loaded.model
    config = getattr(model.config, "vision_config", model.config)
    if any(hasattr(module, "resize_positional_embeddings") for module in model.modules()):
        return _patch_part(source, loaded, axes, config)
    channels, height, width = image_shape(config, _usual_size(source.folder))
    sizes = axes.resolve([BATCH], {"height": height, "width": width})
    if (sizes["height"], sizes["width"]) != (height, width):
        raise InputError(
            f"{source.name} is exported for images of {height} x {width} pixels only",
            hint=f"--axes batch,height={height},width={width}",
        )
    shape: tuple[int | str, ...] = (sizes[BATCH], channels, height, width)
    if hasattr(config, "num_frames"):  # a video's
        shape = (sizes[BATCH], config.num_frames, channels, height, width)
    return _maskless_part(
        source, loaded, (Tensor("pixel_values", "float32", shape),), trial_sizes(sizes, {}, (2, 1, 3))
    )


def _patch_part(source: EncoderSource, loaded: LoadedModel, axes: Axes, config: Any) -> ExportPart:
    """SigLIP 2: images as patches of any grid."""
    siglip2.use_resized_positions(loaded.model)
    sizes = axes.resolve([BATCH, "patches"], {})
    batch, patches = sizes[BATCH], sizes["patches"]
    width = config.num_channels * config.patch_size**2
    inputs = (
        Tensor(siglip2.NAMES[0], "float32", (batch, patches, width)),
        Tensor(siglip2.NAMES[1], "int64", (batch, patches)),
        Tensor(siglip2.NAMES[2], "int64", (batch, 2)),
    )
    usual = config.num_patches
    trials = trial_sizes(sizes, {"patches": (usual, max(1, usual // 2), usual + 3)}, (2, 1, 3))
    return _maskless_part(source, loaded, inputs, trials, partial(siglip2.patch_inputs, (batch, patches), width))


def _audio_part(source: EncoderSource, loaded: LoadedModel, axes: Axes) -> ExportPart:
    model, config = loaded.model, loaded.model.config
    feature = model.main_input_name
    if source.architecture.name == "audio-spectrogram-transformer":
        return _spectrogram_part(source, loaded, axes, ("frames", "mels"), spectrogram_shape(config))
    if hasattr(config, "max_source_positions") and hasattr(config, "num_mel_bins"):
        # Whisper's classifier pools over all of its 30 s, padding included, as it was trained to.
        shape = (config.num_mel_bins, 2 * config.max_source_positions)
        return _spectrogram_part(source, loaded, axes, ("mels", "frames"), shape)
    axis, lengths = "samples", SAMPLES
    after: tuple[int, ...] = ()
    if feature != "input_values":
        n_features = getattr(config, "feature_projection_input_dim", None) or getattr(config, "num_mel_bins", None)
        if not isinstance(n_features, int):
            raise WeightsError(f"{source.name}: its config does not say how many features a frame has")
        axis, lengths, after = "frames", FRAMES, (n_features,)
    sizes = axes.resolve([BATCH, axis], {})
    inputs = (
        Tensor(feature, "float32", (sizes[BATCH], sizes[axis], *after)),
        Tensor(MASK, "int64", (sizes[BATCH], sizes[axis])),
    )
    if source.task in CLASSIFICATION.values():
        module: nn.Module = Logits(model, (feature, MASK))
    elif source.task == "feature-extraction":
        module = States(AudioStates(model, feature), with_mask=True)
    else:
        module = PooledStates(AudioStates(model, feature))
    trials = trial_sizes(sizes, {axis: lengths}, (2, 1, 3))
    part = ExportPart(PART, module.eval(), inputs, (), trials, n_heads=_heads(model, config))
    return with_outputs(part, source.task, source.architecture.modality)


def _spectrogram_part(
    source: EncoderSource, loaded: LoadedModel, axes: Axes, names: tuple[str, str], shape: tuple[int, int]
) -> ExportPart:
    """Speech as a spectrogram of one size, without a mask: AST, and Whisper's classifier."""
    sizes = axes.resolve([BATCH], dict(zip(names, shape, strict=True)))
    if tuple(sizes[name] for name in names) != shape:
        wanted = ",".join(f"{name}={size}" for name, size in zip(names, shape, strict=True))
        raise InputError(f"{source.name} takes spectrograms of one size", hint=f"--axes batch,{wanted}")
    inputs = (Tensor(loaded.model.main_input_name, "float32", (sizes[BATCH], *shape)),)
    return _maskless_part(source, loaded, inputs, trial_sizes(sizes, {}, (2, 1, 3)))


def _maskless_part(
    source: EncoderSource,
    loaded: LoadedModel,
    inputs: tuple[Tensor, ...],
    trials: tuple[Mapping[str, int], ...],
    make_inputs: MakeInputs | None = None,
) -> ExportPart:
    """A part whose model pools by itself: logits, states, or one vector."""
    model = loaded.model
    names = tuple(tensor.name for tensor in inputs)
    config = getattr(model.config, "vision_config", model.config)
    states = OwnForward(model, names, None)
    part = ExportPart(PART, states.eval(), inputs, (), trials, n_heads=_heads(model, config), make_inputs=make_inputs)
    if source.task in CLASSIFICATION.values():
        part = replace(part, module=Logits(model, names).eval())
    elif source.task != "feature-extraction":
        feeds = part.trial_inputs(trials[0], np.random.default_rng(0))
        with torch.inference_mode():
            answer = model(**{name: torch.from_numpy(value) for name, value in feeds.items()})
        part = replace(part, module=OwnForward(model, names, _vector(loaded, answer)).eval())
    return with_outputs(part, source.task, source.architecture.modality)


def _vector(loaded: LoadedModel, answer: Any) -> Vector:
    """The model's own pooling where it has one with trained weights, else the class token, else the mean."""
    trained = not any("pooler." in name for name in loaded.missing)
    if trained and getattr(answer, "pooler_output", None) is not None:
        return "pooler"
    return "first" if any(name.rpartition(".")[2] in CLASS_TOKENS for name in loaded.parameters) else "mean"


def _usual_size(folder: Path) -> tuple[int, int]:
    """Height and width that a folder's preprocessor makes images of."""
    try:
        config = json.loads((folder / PREPROCESSOR).read_text(encoding="utf-8"))
        size = config.get("crop_size") or config.get("size")
        side = size if isinstance(size, int) else size.get("shortest_edge")
        height, width = (side, side) if side else (size["height"], size["width"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return IMAGE_SIDE, IMAGE_SIDE
    plausible = all(isinstance(one, int) and 0 < one <= 4096 for one in (height, width))
    return (height, width) if plausible else (IMAGE_SIDE, IMAGE_SIDE)


def _heads(model: Any, config: Any) -> int:
    """Attention heads that int8 fuses: none where transformers has no fused attention for the model."""
    return attention_heads(config) if getattr(model, "_supports_sdpa", False) else 0
