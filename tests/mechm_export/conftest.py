"""The preset `tiny` in torch, which several modules compare with."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechm_export.parts import ModelParts, build_parts


@pytest.fixture(scope="session")
def tiny_parts(small_weights: Path) -> ModelParts:
    """What `tiny_bundle` was exported from. Change a copy, not this."""
    return build_parts("tiny", None)
