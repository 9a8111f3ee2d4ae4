"""An encoder's folder in the Hugging Face layout: found or fetched, looked through, and loaded into torch.

Nothing that comes with a model is executed: no code of its repository, and pickled weights (`pytorch_model.bin`) only
as far as they hold tensors alone. Every weight has to be there.
"""

from __future__ import annotations

import importlib
import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mechm.model.transformers_output import quiet_transformers
from mechm_export.encoders.architectures import Architecture, Modality, Task, find_architecture
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
    """The transformers model, float32, in eval mode.

    Raises: WeightsError: weights are missing, misshapen, damaged, or a pickle that holds more than tensors.
    """
    name = source.architecture.loader
    if source.task != "feature-extraction" and source.architecture.embedder:
        name = source.architecture.embedder
    # A whole CLIP states the width of both projections once, and not always in its halves' own configs.
    projects = name == source.architecture.embedder and "projection_dim" in source.config
    shared = {"projection_dim": source.config["projection_dim"]} if projects else {}
    loader: Any = getattr(importlib.import_module(source.architecture.module), name)
    try:
        with quiet_transformers():
            model, found = loader.from_pretrained(
                source.folder,
                local_files_only=True,
                trust_remote_code=False,
                weights_only=True,
                dtype=torch.float32,
                output_loading_info=True,
                **shared,
            )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, pickle.UnpicklingError, EOFError) as error:
        raise WeightsError(
            f"{source.name} does not load as {name}: {_first_line(error)}",
            hint="weights are read from *.safetensors, or from pytorch_model.bin that holds tensors alone",
        ) from error
    except Exception as error:
        # safetensors raises a type of its own, which says nothing to who only has torch and transformers in mind.
        if not type(error).__module__.startswith("safetensors"):
            raise
        raise WeightsError(f"{source.name} has a damaged safetensors file: {_first_line(error)}") from error
    missing = sorted(key for key in found["missing_keys"] if not MAY_LACK.search(key))
    if missing or found["mismatched_keys"]:
        wrong = missing or sorted(str(key[0]) for key in found["mismatched_keys"])
        raise WeightsError(
            f"{source.name} lacks {len(wrong)} weights of {name}, {wrong[0]} first",
            hint="--task feature-extraction needs no projection" if "projection" in wrong[0] else "",
        )
    loaded: nn.Module = model
    return loaded.eval()


def _fetch(repo_id: str, revision: str | None) -> Path:
    """A repository's snapshot in the hub's own cache. Raises: WeightsError: unreachable, unknown or gated."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=HUB_FILES))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(repo_id, revision=revision, allow_patterns=[*HUB_FILES, *PICKLED_FILES])
    except Exception as error:  # the hub client's errors share no base with its HTTP client's
        raise WeightsError(
            f"{repo_id} cannot be fetched from the hub: {_first_line(error)}",
            hint=f"where the hub is in reach, hf download {repo_id} --local-dir DIR; then --model DIR",
        ) from error
    return folder


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
