"""Reads and writes the fitted combination of a trained adapter with a fusion, `combination.json` in its folder.

It is fitted by `mechm.training.combination` and applied by `mechm_runtime.fusion.combination`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mechm.model.build import WEIGHTS_FILE, read_decision
from mechm_runtime.bundle.config import CombinationConfig, DecisionConfig
from mechm_runtime.bundle.open import file_sha256
from mechm_runtime.errors import WeightsError
from mechm_runtime.system.atomic_write import write_atomically

LLAMA_FOLDER = "llm"
"""Folder of the adapter within the folder of the fusion's trained weights."""
ADAPTER_FILE = "adapter_model.safetensors"
COMBINATION_FILE = "combination.json"
FIT = "fit it with mechm train combination --adapter DIR --fusion DIR --dev FILE"


@dataclass(frozen=True, slots=True)
class FittedCombination:
    """Weights of both models and the decision on the combined scores.

    fusion_sha256: of the fusion weights that they were fitted with, without which they are not valid.
    scores: split -> `fusion`, `llama` or `both` -> scores, see `mechm.training.card.split_scores`.
    """

    combination: CombinationConfig
    decision: DecisionConfig
    fusion_sha256: str
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a trained adapter."""
    return (folder / ADAPTER_FILE).is_file()


def fusion_sha256(fusion: Path) -> str:
    """Compute the sha256 of a folder's trained fusion weights.

    Raises: WeightsError: there are none.
    """
    file = fusion / WEIGHTS_FILE
    if not file.is_file():
        raise WeightsError(f"{fusion} has no trained fusion weights", hint="mechm train fusion --help")
    return file_sha256(file)


def write_combination(fitted: FittedCombination, adapter: Path) -> None:
    """Write `combination.json` into an adapter's folder, atomically.

    Raises: WeightsError: it cannot be written.
    """
    target = adapter / COMBINATION_FILE
    try:
        write_atomically(target, json.dumps(asdict(fitted), indent=2) + "\n")
    except OSError as error:
        raise WeightsError(f"cannot write {target}: {error.strerror or error}", hint="free disk space") from error


def read_combination(adapter: Path, fusion: Path) -> FittedCombination:
    """Read the combination that was fitted for an adapter and a fusion.

    Raises: WeightsError: there is none, it was fitted with another fusion, or the file is damaged.
    """
    try:
        values = json.loads((adapter / COMBINATION_FILE).read_text(encoding="utf-8"))
        fitted = FittedCombination(
            CombinationConfig(**values["combination"]),
            read_decision(json.dumps(values["decision"])),
            str(values["fusion_sha256"]),
            dict(values["scores"]),
        )
    except FileNotFoundError as error:
        raise WeightsError(f"{adapter} does not say how to weigh it against a fusion", hint=FIT) from error
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(f"{adapter / COMBINATION_FILE} is damaged: {error}", hint=FIT) from error
    if fitted.fusion_sha256 != fusion_sha256(fusion):
        raise WeightsError(f"{adapter} was combined with another fusion than {fusion}", hint=FIT)
    return fitted
