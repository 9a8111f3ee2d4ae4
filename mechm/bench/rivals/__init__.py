"""The rivals that MECHM is measured against: the same weights, run the way others run them, one file per rival.

`BASELINES` lists them; a rival's module imports torch and similar packages when the rival is built.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from mechm_runtime.bundle.modality import MODALITY_PARTS
from mechm_runtime.errors import InputError, MissingExtraError
from mechm_runtime.llm.vllm.config import ServerConfig

if TYPE_CHECKING:
    from mechm.bench.rivals.per_utterance import PerUtteranceSystem
    from mechm_runtime.bundle.manifest import Bundle

Baseline = Literal["original", "compile", "glue"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)

PARTS = (*chain.from_iterable(MODALITY_PARTS.values()), "fusion")
"""The parts of a bundle that a rival runs, besides a Llama."""

REQUIRED_PACKAGES: Mapping[Baseline, tuple[tuple[str, str], ...]] = {
    "original": (("torch", "train"), ("transformers", "train"), ("peft", "train")),
    "compile": (("torch", "train"), ("transformers", "train"), ("peft", "train")),  # peft: the text encoder's adapter
    "glue": (),
}
"""Packages by rival, each with the extra of mechm that installs it."""


@dataclass(frozen=True, slots=True)
class RivalConfig:
    """Settings that all rivals share.

    n_threads: of torch and onnxruntime. generates: whether the Llama answers too, by generating text. trained: folder
    of the fusion's weights, adapter: folder of the Llama's LoRA; None for the shipped ones; both must be those that the
    bundle was exported from. server: of `glue`'s Llama. modalities: that are used; empty for those that the bundle's
    weights were trained on.
    """

    n_threads: int
    generates: bool
    trained: Path | None = None
    adapter: Path | None = None
    server: ServerConfig | None = None
    modalities: tuple[str, ...] = ()


def make_rival(name: Baseline, bundle: Bundle, config: RivalConfig) -> PerUtteranceSystem:
    """Build a rival; it loads its weights when it is prepared.

    Raises: MissingExtraError: a package is not installed. InputError: the bundle or the config lacks what it needs.
    """
    for package, extra in REQUIRED_PACKAGES[name]:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, extra=extra)
    if config.generates and name != "compile" and bundle.llama is None:
        raise InputError("the bundle has no Llama, so no rival can generate with it", hint="choose --llm none")
    if name == "glue" and config.generates and config.server is None:
        raise InputError(
            "the rival glue needs a vLLM server for its Llama, and none is named",
            hint="mechm serve llm --bundle DIR, then --llm-url http://127.0.0.1:8000; or choose --llm none",
        )
    module = importlib.import_module(f"mechm.bench.rivals.{name}")
    rival: PerUtteranceSystem = module.make(bundle, config)
    return rival
