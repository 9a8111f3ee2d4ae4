"""Reads and writes a trained projector in its adapter's folder: weights, sizes and hashes of the models it fits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mechm.llm.combination import ADAPTER_FILE, fusion_sha256
from mechm.model.build import CARD_FILE
from mechm.model.projector import ProjectorConfig, SoftTokenProjector
from mechm_runtime.bundle.open import file_sha256
from mechm_runtime.errors import WeightsError
from mechm_runtime.system.atomic_write import replaced_file

PROJECTOR_FOLDER = "projector"
"""Folder of the projector within the folder of its adapter."""
PROJECTOR_FILE, PROJECTOR_CONFIG = "projector.safetensors", "projector.json"
TRAIN = "train it with mechm train projector --adapter DIR --fusion DIR --train FILE --dev FILE"


@dataclass(frozen=True, slots=True)
class ProjectorOrigin:
    """sha256 of the fusion and adapter that a projector was trained between; it is not valid with others."""

    fusion_sha256: str
    adapter_sha256: str

    @classmethod
    def of(cls, fusion: Path, adapter: Path) -> ProjectorOrigin:
        """Hash the weights in a folder of a fusion and one of an adapter.

        Raises: WeightsError: either has no weights.
        """
        if not (adapter / ADAPTER_FILE).is_file():
            raise WeightsError(f"{adapter} has no trained adapter", hint="mechm train llm --help")
        return cls(fusion_sha256(fusion), file_sha256(adapter / ADAPTER_FILE))


def has_projector(adapter: Path) -> bool:
    """Whether an adapter's folder has a projector."""
    return (adapter / PROJECTOR_FOLDER / PROJECTOR_FILE).is_file()


def save_projector(
    projector: SoftTokenProjector, origin: ProjectorOrigin, card: Mapping[str, Any], folder: Path
) -> None:
    """Write weights (fp32), sizes with origin, and card; a full disk leaves existing files intact.

    Raises: WeightsError: the folder cannot be written.
    """
    texts = {PROJECTOR_CONFIG: {**asdict(projector.config), **asdict(origin)}, CARD_FILE: dict(card)}
    state = {name: value.detach().cpu().contiguous() for name, value in projector.state_dict().items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as files:  # all are written before the first one is renamed
            beside = {name: files.enter_context(replaced_file(folder / name)) for name in (PROJECTOR_FILE, *texts)}
            for name, content in texts.items():
                beside[name].write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            save_file(state, beside[PROJECTOR_FILE])
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"the projector cannot be written: {error}", hint="free disk space") from error


def load_projector(adapter: Path, fusion: Path) -> SoftTokenProjector:
    """Load the projector in an adapter's folder, for use with a folder of fusion weights.

    Raises: WeightsError: it is damaged, or was trained with another adapter or fusion.
    """
    folder = adapter / PROJECTOR_FOLDER
    try:
        values = json.loads((folder / PROJECTOR_CONFIG).read_text(encoding="utf-8"))
        origin = ProjectorOrigin(str(values.pop("fusion_sha256")), str(values.pop("adapter_sha256")))
        projector = SoftTokenProjector(ProjectorConfig(**values))
        projector.load_state_dict(load_file(folder / PROJECTOR_FILE))
    except (OSError, AttributeError, LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"the projector in {folder} cannot be read: {reason}", hint=TRAIN) from error
    if origin != ProjectorOrigin.of(fusion, adapter):
        raise WeightsError(f"the projector in {folder} was trained with another adapter or fusion", hint=TRAIN)
    return projector.eval()
