"""An encoder's folder in the Hugging Face layout: found or fetched, looked through, and loaded into torch.

Nothing that comes with a model is executed: no code of its repository, and pickled weights (`pytorch_model.bin`) only
as far as they hold tensors alone. Every weight has to be there.
"""

from __future__ import annotations

import importlib
import json
import pickle
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mechm.model.transformers_output import quiet_transformers
from mechm_export.encoders.architectures import ARCHITECTURES, CLASSIFICATION, EMBEDDING, Architecture, Modality, Task
from mechm_export.encoders.checkpoint import LoadedModel, stored_shapes
from mechm_export.encoders.heads import DENSE, OUTPUT, speech_classifier_class
from mechm_export.encoders.lookup import find_architecture
from mechm_runtime.errors import InputError, WeightsError

CONFIG = "config.json"
MAX_CONFIG_BYTES = 4 << 20
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
HUB_FILES = ["*.json", "*.txt", "*.safetensors", "tokenizer.model", "*_Pooling/*"]
PICKLED_FILES = ["pytorch_model*.bin"]
CARRIED = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
"""Files that whoever runs a graph needs beside it."""

MAY_LACK = re.compile(r"(^|\.)pooler\.|masked_spec_embed$|mask_token$")
"""Weights that some checkpoints lack and no export uses: BERT's pooler, what only training masks with."""


@dataclass(frozen=True, slots=True)
class EncoderSource:
    """An encoder's folder and what it is.

    name: the hub id or the folder's name. folder: in the Hugging Face layout. config: its config.json.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    architecture: Architecture
    task: Task


def find_source(
    model: str, *, task: Task | None = None, modality: Modality | None = None, revision: str | None = None
) -> EncoderSource:
    """A local folder, or a repository of the Hugging Face hub, which is fetched.

    model: folder or hub id. revision: branch, tag or commit of the hub's repository.
    Raises: InputError: neither, or a task that it does not have. WeightsError: unreachable, damaged or unknown.
    """
    folder = Path(model)
    if not folder.is_dir():
        if not HUB_ID.fullmatch(model) or folder.exists():
            raise InputError(f"{model} is neither a folder nor a hub id", hint="--model DIR, or --model OWNER/NAME")
        folder = _fetch(model, revision)
    elif revision is not None:
        raise InputError("--revision is for hub ids, and --model is a folder", hint="leave --revision out")
    config = read_config(folder)
    if (folder / "adapter_config.json").exists():
        raise WeightsError(f"{model} is an adapter, not a whole model", hint="merge it into its base first (peft)")
    architecture, task = find_architecture(config.get("model_type"), task, modality)
    if task == CLASSIFICATION["audio"]:
        architecture = _speech_architecture(folder, architecture)
    # A folder's own name, so that no path of this machine gets into what is written.
    name = model if str(folder) != model else folder.absolute().name
    return EncoderSource(name, folder, config, architecture, task)


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json. Raises: WeightsError: missing, too large or no JSON object."""
    path = folder / CONFIG
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise WeightsError(f"{path} is larger than {MAX_CONFIG_BYTES >> 20} MiB")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{folder} has no readable {CONFIG}: {type(error).__name__}",
            hint="give a folder that transformers' save_pretrained wrote",
        ) from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path} is not a JSON object")
    return config


def load_model(source: EncoderSource) -> Any:
    """The transformers model, float32, in eval mode. Raises: as `load_encoder`."""
    return load_encoder(source).model


def load_encoder(source: EncoderSource) -> LoadedModel:
    """The transformers model and what it did not take from the checkpoint.

    Raises: WeightsError: weights are missing, misshapen, damaged, or a pickle that holds more than tensors.
    """
    name = source.architecture.loader
    if source.task != "feature-extraction" and source.architecture.embedder:
        name = source.architecture.embedder
    # A whole CLIP states the width of both projections once, and not always in its halves' own configs.
    projects = name == source.architecture.embedder and "projection_dim" in source.config
    options = {"projection_dim": source.config["projection_dim"]} if projects else {}
    loader: Any = getattr(importlib.import_module(source.architecture.module), name)
    shapes = stored_shapes(source.folder)
    if source.architecture.family == "speech-head":
        loader = speech_classifier_class(loader)
        options = {"num_labels": shapes[OUTPUT][0]}
    model, found = _load(source, loader, name, options)
    missing = sorted(key for key in found["missing_keys"] if not MAY_LACK.search(key))
    if missing or found["mismatched_keys"]:
        wrong = missing or sorted(str(key[0]) for key in found["mismatched_keys"])
        raise WeightsError(
            f"{source.name} lacks {len(wrong)} weights of {name}, {wrong[0]} first",
            hint=_missing_hint(source, wrong[0]),
        )
    loaded: nn.Module = model
    return LoadedModel(
        loaded.eval(),
        tuple(shapes),
        frozenset(found["unexpected_keys"]),
        frozenset(found["missing_keys"]),
        dict(loaded.named_parameters(remove_duplicate=False)),
    )


def _speech_architecture(folder: Path, classifier: Architecture) -> Architecture:
    """The classifier, or the encoder below a dense head where that is what the checkpoint holds."""
    own = ARCHITECTURES.get(str(read_config(folder).get("model_type")), ())
    if own and own[0].family == "wav2vec2" and {DENSE, OUTPUT} <= stored_shapes(folder).keys():
        return replace(own[0], family="speech-head")
    return classifier


def _load(source: EncoderSource, loader: Any, name: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Load without code of the folder's, with tensors alone. Raises: WeightsError."""
    try:
        with quiet_transformers():
            model, found = loader.from_pretrained(
                source.folder,
                local_files_only=True,
                trust_remote_code=False,
                weights_only=True,
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, pickle.UnpicklingError, EOFError) as error:
        raise WeightsError(
            f"{source.name} does not load as {name}: {first_line(error)}",
            hint="weights are read from *.safetensors, or from pytorch_model.bin that holds tensors alone",
        ) from error
    except Exception as error:
        # safetensors raises a type of its own, which says nothing to who only has torch and transformers in mind.
        if not type(error).__module__.startswith("safetensors"):
            raise
        raise WeightsError(f"{source.name} has a damaged safetensors file: {first_line(error)}") from error
    return model, found


def _missing_hint(source: EncoderSource, missing: str) -> str:
    if source.task in CLASSIFICATION.values():
        kept = EMBEDDING[source.architecture.modality]
        return f"the checkpoint has no head that transformers knows; --task {kept} exports its encoder"
    return "--task feature-extraction needs no projection" if "projection" in missing else ""


def _fetch(repo_id: str, revision: str | None) -> Path:
    """A repository's snapshot in the hub's own cache. Raises: WeightsError: unreachable, unknown or gated."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=HUB_FILES))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(repo_id, revision=revision, allow_patterns=[*HUB_FILES, *PICKLED_FILES])
    except Exception as error:  # the hub client's errors share no base with its HTTP client's
        raise WeightsError(
            f"{repo_id} cannot be fetched from the hub: {first_line(error)}",
            hint=f"where the hub is in reach, hf download {repo_id} --local-dir DIR; then --model DIR",
        ) from error
    return folder


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 300 characters; its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
