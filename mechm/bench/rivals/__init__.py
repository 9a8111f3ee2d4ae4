"""What MECHM is measured against: the same weights run as others run them, one file a rival.

`BASELINES` is the table; a rival's module imports torch and its company when it is built.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from mechm_runtime.bundle.manifest import MODALITY_PARTS
from mechm_runtime.errors import InputError, MissingExtraError
from mechm_runtime.llm.vllm.config import ServerConfig

if TYPE_CHECKING:
    from mechm.bench.rivals.by_utterance import ByUtterance
    from mechm_runtime.bundle.manifest import Bundle

Baseline = Literal["original", "compile", "glue"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)

PARTS = (*chain.from_iterable(MODALITY_PARTS.values()), "fusion")
"""What a rival runs of a bundle, beside a Llama."""

NEEDS: Mapping[Baseline, tuple[tuple[str, str], ...]] = {
    "original": (("torch", "train"), ("transformers", "train"), ("peft", "train")),
    "compile": (("torch", "train"), ("transformers", "train"), ("peft", "train")),  # peft: the text encoder's adapter
    "glue": (),
}
"""Packages, and mechm's extras that bring them."""


@dataclass(frozen=True, slots=True)
class RivalConfig:
    """What rivals share.

    adapter: folder of the Llama's LoRA, None for the shipped one. trained: of the fusion's weights, None for the
    shipped ones; both must be what the bundle was made from. writes: whether the Llama answers too, by writing.
    server: of `glue`'s Llama. n_threads: of torch and onnxruntime. modalities: what they read; empty for what the
    bundle's weights learned to read.
    """

    n_threads: int
    writes: bool
    trained: Path | None = None
    adapter: Path | None = None
    server: ServerConfig | None = None
    modalities: tuple[str, ...] = ()


def make_rival(name: Baseline, bundle: Bundle, config: RivalConfig) -> ByUtterance:
    """Build a rival; it loads its weights when it is prepared.

    Raises: MissingExtraError: it needs a package that is not installed. InputError: it cannot answer as asked.
    """
    for package, extra in NEEDS[name]:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, extra=extra)
    if config.writes and name != "compile" and bundle.llama is None:
        raise InputError("the bundle has no Llama, so no rival writes with it", hint="choose --llm none")
    if name == "glue" and config.writes and config.server is None:
        raise InputError(
            "the glue's Llama writes on a vLLM server, and none is named",
            hint="mechm serve llm --bundle DIR, then --llm-url http://127.0.0.1:8000; or choose --llm none",
        )
    module = importlib.import_module(f"mechm.bench.rivals.{name}")
    rival: ByUtterance = module.make(bundle, config)
    return rival
