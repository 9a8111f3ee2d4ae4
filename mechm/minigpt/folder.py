"""Layout of an imported MiniGPT-v2's folder, and the precision of its Llama. Does not need torch."""

from __future__ import annotations

import json
from pathlib import Path

from mechm_runtime.errors import WeightsError
from mechm_runtime.llm.vllm.launch_plan import DTYPES

LLAMA_FOLDER, VISION_FOLDER = "llm", "vision"

MAX_TOKENS = 2048
"""Limit for a prompt with its answer in vLLM; MiniGPT-v2 truncates at 2,000."""


def imported_folders(folder: Path) -> tuple[Path, Path]:
    """Return the folders of an imported model's ViT and Llama.

    Raises: WeightsError: one of them is missing.
    """
    vision, llama = folder / VISION_FOLDER, folder / LLAMA_FOLDER
    if not vision.is_dir() or not llama.is_dir():
        raise WeightsError(
            f"{folder} is no imported model",
            hint=f"mechm import minigpt-v2 --checkpoint FILE --llama DIR --vit FILE --out {folder}",
        )
    return vision, llama


def stored_precision(llama: Path) -> str:
    """Read the precision of a Llama's weights, a key of `mechm_runtime.llm.vllm.launch_plan.DTYPES`.

    Raises: WeightsError: its config cannot be read, or has another precision.
    """
    try:
        stored = json.loads((llama / "config.json").read_text(encoding="utf-8")).get("dtype")
    except (OSError, ValueError, AttributeError) as error:
        raise WeightsError(f"{llama} has no config that can be read: {error}", hint="import it again") from error
    precision = next((name for name, value in DTYPES.items() if value == stored), None)
    if precision is None:
        raise WeightsError(f"{llama} is stored as {str(stored)[:40]!r}", hint="import it again")
    return precision
