"""Writes a trained adapter with its decision and card, completely or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mechm.model.build import CARD_FILE, DECISION_FILE
from mechm.training.card import LIMITS, corpora_table, unseen_note
from mechm.training.llm import LlamaTrainingConfig
from mechm_runtime.bundle.config import DecisionConfig
from mechm_runtime.errors import WeightsError
from mechm_runtime.system.atomic_write import staged_folder
from mechm_runtime.types import LabelledConversation

_PEFT_CONFIG = "adapter_config.json"


def adapter_card(
    preset: str, corpora: Mapping[str, Sequence[LabelledConversation]], config: LlamaTrainingConfig
) -> dict[str, Any]:
    """Make the card before training; `stage`, `epoch` and `scores` are filled in for the epoch that is kept."""
    unseen = unseen_note(corpora[config.stages[-1].corpora[0]])
    return {
        "preset": preset,
        "data": corpora_table(corpora),
        "training": asdict(config),
        "limits": [*([unseen] if unseen else []), LIMITS[0], LIMITS[-1]],
        "stage": None,
        "epoch": None,
        "scores": {},
    }


def save_adapter(llama: Any, decision: DecisionConfig, card: dict[str, Any], folder: Path) -> None:
    """Write a peft model's adapter (safetensors), the decision and the card, replacing an existing adapter.

    Everything is written into a temporary folder first, so that the old adapter survives a full disk. Other files in
    `folder` (a checkpoint, curves) are kept.
    Raises: WeightsError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with staged_folder(folder / "adapter") as beside:
            _write_adapter(llama, decision, card, beside)
            for written in sorted(beside.iterdir()):
                written.replace(folder / written.name)
    except OSError as error:
        raise WeightsError(
            f"cannot write {folder}: {error.strerror or error}", hint="free some space or choose another --out"
        ) from error


def _write_adapter(llama: Any, decision: DecisionConfig, card: dict[str, Any], folder: Path) -> None:
    """Write the adapter, the decision and the card into an empty folder."""
    llama.save_pretrained(folder, save_embedding_layers=False)
    # peft writes the base's path on this machine into its config and into a card of its own.
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / _PEFT_CONFIG).read_text(encoding="utf-8")) | {"base_model_name_or_path": None}
    (folder / _PEFT_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name, content in ((DECISION_FILE, asdict(decision)), (CARD_FILE, card)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
