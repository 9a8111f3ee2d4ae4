"""A loaded encoder as a part to export: names, dtypes and axes of inputs and outputs, and sizes to try.

What each architecture is, is `architectures`; what its module computes, `modules`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from mechm_export.encoders.axes import BATCH, Axes
from mechm_export.encoders.modules import (
    OneOutput,
    PooledStates,
    Pooling,
    States,
    TextStates,
    Wav2Vec2States,
    WhisperStates,
    resize_positions,
)
from mechm_export.encoders.source import EncoderSource, load_model
from mechm_export.graphs.part import ExportPart, Feeds
from mechm_export.precision.dynamic_int8 import Int8Recipe
from mechm_runtime.bundle.manifest import Tensor
from mechm_runtime.errors import InputError, WeightsError

PART = "encoder"
MASK = "attention_mask"
MODULES = "modules.json"
"""Where sentence-transformers says what follows the encoder."""

LONGEST_TRIAL = 512
FIRST_WORD = 5
"""Ids below it are often padding and marks; trials are made of others, so that padding stands where the mask says."""


def encoder_part(source: EncoderSource, axes: Axes) -> ExportPart:
    """Load an encoder and describe it.

    Raises: InputError: axes that it does not have. WeightsError: weights that do not load, or a form of the
        architecture that is not exported.
    """
    build = {"text": _text_part, "vision": _vision_part, "audio": _audio_part}[source.architecture.modality]
    model = load_model(source)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return build(source, model, axes)


def _text_part(source: EncoderSource, model: Any, axes: Axes) -> ExportPart:
    family, config = source.architecture.family, model.config
    longest = config.max_position_embeddings
    if source.architecture.name in ("mpnet", "roberta", "camembert", "xlm-roberta"):
        longest -= model.embeddings.padding_idx + 1  # their positions count from behind padding's
    fixed_length = {"tokens": longest} if family == "siglip-text" else {}
    names = [BATCH] if fixed_length else [BATCH, "tokens"]
    sizes = axes.resolve(names, fixed_length)
    _check_limit(sizes, "tokens", longest)
    shape = (sizes[BATCH], sizes["tokens"])
    inputs = [Tensor("input_ids", "int64", shape)]
    if family != "siglip-text":  # it was trained on padding as on any other word
        inputs.append(Tensor(MASK, "int64", shape))
    width = config.hidden_size if hasattr(config, "hidden_size") else config.dim
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
        _trials(sizes, {"tokens": (16, 5, min(longest, LONGEST_TRIAL), 9)}, (2, 1, 1, 4)),
        n_heads=_heads(config),
        integer_limits={"input_ids": config.vocab_size},
        int8=Int8Recipe(smoothing=0.5, tokens=True, embeddings=True) if family == "bert" else Int8Recipe(),
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
        _trials(sizes, {}, (2, 1, 3)),
        n_heads=_heads(config),
    )


def _audio_part(source: EncoderSource, model: Any, axes: Axes) -> ExportPart:
    config = model.config
    states: nn.Module
    if source.architecture.family == "whisper":
        axis, longest = "frames", 2 * config.max_source_positions
        sizes = axes.resolve([BATCH, axis], {})
        _check_limit(sizes, axis, longest)
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
        width, states = config.hidden_size, Wav2Vec2States(model)
        size = sizes[axis]
        n_out = int(model._get_feat_extract_output_lengths(size)) if isinstance(size, int) else "positions"
        if isinstance(n_out, int) and n_out < 1:
            raise InputError(f"{size} samples are too few for one frame", hint="samples=16000 is a second")
    outputs: tuple[Tensor, ...]
    if source.task == "feature-extraction":
        module: nn.Module = States(states, with_mask=True)
        outputs = (
            Tensor("last_hidden_state", "float32", (sizes[BATCH], n_out, width)),
            Tensor("position_mask", "int64", (sizes[BATCH], n_out)),
        )
    else:
        module = PooledStates(states)
        outputs = (Tensor("audio_embeds", "float32", (sizes[BATCH], width)),)
    return ExportPart(
        PART,
        module.eval(),
        (features, Tensor(MASK, "int64", (sizes[BATCH], sizes[axis]))),
        outputs,
        _trials(sizes, {axis: lengths}, (2, 1, 3, 1)),
        n_heads=_heads(config),
        int8=Int8Recipe(unfold=source.architecture.family == "whisper"),
    )


def sentence_pooling(folder: Path) -> tuple[Pooling, bool]:
    """How sentence-transformers makes a sentence's vector: the pooling, and whether it has length 1.

    A folder without `modules.json` gets the mean, not normalised.
    Raises: WeightsError: a module or pooling that is not exported, or a damaged file.
    """
    if not (folder / MODULES).is_file():
        return "mean", False
    try:
        modules = json.loads((folder / MODULES).read_text(encoding="utf-8"))
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
        if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
            raise WeightsError(
                f"{folder} goes through {', '.join(kinds)}; exported are a pooling and a normalisation",
                hint="--task feature-extraction exports the encoder alone",
            )
        config = json.loads((folder / Path(modules[1]["path"]).name / "config.json").read_text(encoding="utf-8"))
        mode = config.get("pooling_mode")
        prefix = "pooling_mode_"
        asked = [mode] if mode else [key.removeprefix(prefix) for key, on in config.items() if prefix in key and on]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(f"{folder}: {MODULES} or the pooling's config is damaged: {error}") from error
    known: dict[str, Pooling] = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls"}
    if len(asked) != 1 or asked[0] not in known:
        raise WeightsError(
            f"{folder} pools by {', '.join(map(str, asked))}; exported are mean and cls",
            hint="--task feature-extraction exports the encoder alone",
        )
    return known[asked[0]], "Normalize" in kinds


def word_inputs(
    shape: tuple[int | str, ...],
    vocab_size: int,
    names: list[str],
    end: int | None,
    sizes: Mapping[str, int],
    random: np.random.Generator,
) -> Feeds:
    """Random words and a mask of ones, then padding.

    shape: axes of all inputs. names: of the inputs. end: the id that every text ends with, in models that look for it.
    """
    batch, tokens = (axis if isinstance(axis, int) else sizes[axis] for axis in shape)
    ids = random.integers(min(FIRST_WORD, vocab_size - 1), vocab_size, (batch, tokens))
    lengths = random.integers(max(1, tokens // 2), tokens + 1, (batch, 1))
    lengths[0] = tokens
    if end is not None:
        ids[ids == end] = vocab_size // 2
        # Where `end` is the old CLIP configs' 2, the text ends with the largest id.
        np.put_along_axis(ids, lengths - 1, vocab_size - 1 if end == 2 else end, 1)
    mask = (np.arange(tokens)[None] < lengths).astype(np.int64)
    feeds: Feeds = {"input_ids": ids.astype(np.int64), MASK: mask, "token_type_ids": np.zeros_like(mask)}
    return {name: feeds[name] for name in names}


def _one_output(
    model: nn.Module, task: str, embedding: tuple[str, str, int], feature: str, states: Tensor
) -> tuple[nn.Module, Tensor]:
    """A module of one output and that output. embedding: the model's name of it, ours, and its width."""
    if task == "feature-extraction":
        return OneOutput(model, "last_hidden_state", feature), states
    field, name, width = embedding
    return OneOutput(model, field, feature), Tensor(name, "float32", (states.axes[0], width))


def _trials(
    sizes: Mapping[str, int | str], lengths: Mapping[str, tuple[int, ...]], batches: tuple[int, ...]
) -> tuple[Mapping[str, int], ...]:
    """Sizes of the dynamic axes to compare on; the first has several inputs, since a traced 1 would stay 1."""
    tried: list[dict[str, int]] = []
    n_trials = len(next(iter(lengths.values()), batches))
    for number in range(n_trials):
        trial = {BATCH: batches[number], **{axis: values[number] for axis, values in lengths.items()}}
        trial = {axis: size for axis, size in trial.items() if isinstance(sizes[axis], str)}
        if trial not in tried:
            tried.append(trial)
    return tuple(tried)


def _check_limit(sizes: Mapping[str, int | str], axis: str, longest: int) -> None:
    size = sizes[axis]
    if isinstance(size, int) and size > longest:
        raise InputError(f"{axis}={size} is longer than this encoder's {longest}", hint=f"{axis}={longest}")


def _heads(config: Any) -> int:
    names = ("num_attention_heads", "encoder_attention_heads", "n_heads")
    return int(next(getattr(config, name) for name in names if hasattr(config, name)))
